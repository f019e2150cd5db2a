"""Everything that a training run can be told, as frozen data.

Promise: one `TrainConfig` and one seed determine a run; what cannot work (a warm-up longer than
the run, a decay of more than the whole, a step smaller than one document) is a `ConfigError` in
words before anything is built. Defaults are the family's pretraining recipe (Super technical
report, section 2.3; Nano technical report, section 2.4). Reading TOML is `config/load.py`; what
the data parts mean is `config/data.py`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from fathom.config.data import DataConfig
from fathom.config.model import ModelConfig
from fathom.config.strict import Strict, nearest


class OptimConfig(Strict):
    """How gradients become new weights."""

    kind: Literal["adamw", "muon"] = "adamw"
    """adamw for everything, or muon for hidden matrices and experts with adamw for the rest."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Memory of AdamW's first and second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of AdamW's second moment."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay of matrices; norms, biases, A_log, D and dt_bias never decay."""
    clip: float = Field(default=1.0, ge=0)
    """Largest norm of all gradients together; 0 leaves them as they are."""
    muon_lr: float = Field(default=0.02, gt=0)
    """Peak learning rate of Muon."""
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)
    """Memory of Muon's momentum (Nesterov)."""
    muon_steps: int = Field(default=5, gt=0, lt=100)
    """Newton-Schulz iterations of Muon."""
    muon_precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of those iterations; bf16 is quicker on GPUs and on few processors."""
    muon_scale: Literal["original", "match_rms_adamw"] = "original"
    """How Muon's rate follows a matrix's shape: sqrt(max(1, rows / columns)), or 0.2 times
    sqrt(max(rows, columns)), with which AdamW's rate and decay may be used again."""

    @field_validator("betas")
    @classmethod
    def _inside(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("both betas must be at least 0 and below 1")
        return betas


class ScheduleConfig(Strict):
    """How the learning rate moves over the run."""

    kind: Literal["wsd", "cosine", "constant"] = "wsd"
    """Warm-up, steady, decay; or a cosine after the warm-up; or nothing after the warm-up."""
    warmup: int = Field(default=0, ge=0)
    """Steps of linear warm-up."""
    decay: float = Field(default=0.2, ge=0)
    """Share of the run, at its end, in which wsd decays."""
    shape: Literal["minus-sqrt", "linear", "cosine"] = "minus-sqrt"
    """How wsd decays; minus-sqrt falls fastest at first."""
    floor: float = Field(default=0.01, ge=0, le=1)
    """Where the rate ends, as a share of its peak."""

    @field_validator("decay")
    @classmethod
    def _a_share(cls, decay: float) -> float:
        if decay > 1:
            raise ValueError("decay is a share of the run and cannot be more than 1")
        return decay


class BatchConfig(Strict):
    """How many tokens one step learns from."""

    tokens: int = Field(default=8192, gt=0)
    """Tokens of one step."""
    micro: int | None = Field(default=None, gt=0)
    """Tokens that go through the model at once; gradients add up over them. None: all."""
    ramp_from: int | None = Field(default=None, gt=0)
    """Tokens of the first step, from which the step grows; None: no ramp."""
    ramp_steps: int = Field(default=0, ge=0)
    """Steps over which it grows."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.micro is not None and self.micro > self.tokens:
            raise ValueError(
                f"micro = {self.micro} is more than the {self.tokens} tokens of a step; "
                f"make it smaller or leave it out"
            )
        if self.tokens % self.at_once:
            raise ValueError(
                f"the {self.tokens} tokens of a step are no whole number of micro-batches of "
                f"{self.micro}; {self.tokens // self.at_once * self.at_once} would be"
            )
        if self.ramp_from is not None and self.ramp_from > self.tokens:
            raise ValueError(
                f"ramp_from = {self.ramp_from} is more than the {self.tokens} tokens of a step; "
                f"a ramp grows"
            )
        if (self.ramp_from is None) != (self.ramp_steps == 0):
            raise ValueError("ramp_from and ramp_steps belong together; give both or neither")
        return self

    @property
    def at_once(self) -> int:
        """Tokens that go through the model at once."""
        return self.micro or self.tokens


class BalanceConfig(Strict):
    """How the load is spread over experts (Super technical report, section 2.3)."""

    on: bool = True
    """Whether the routers are balanced at all."""
    bias_rate: float = Field(default=1e-3, ge=0)
    """Step by which a router's correction bias moves towards an even load."""
    loss: float = Field(default=1e-4, ge=0)
    """Weight of the sequence-wise load-balance loss."""


class MtpConfig(Strict):
    """How the multi-token prediction head learns; a model without one ignores this."""

    depths: int = Field(default=2, ge=0)
    """How many tokens past the next one it learns to guess; 0 leaves it untrained."""
    factor: float = Field(default=0.3, ge=0)
    """Weight of the mean loss over depths."""
    detach: bool = False
    """Whether its gradient stops before the backbone, the embedding and the head."""


class DistilConfig(Strict):
    """A teacher, whose distribution of the next token is learned instead of the data's."""

    teacher: str
    """A folder, a run or a hub id (give the latter's @revision): a frozen model with the same
    tokenizer. The loss is the divergence KL(teacher || student), in nats, weighted as the next
    token is; the MTP head goes on learning from the data, by `mtp`."""
    data: float = Field(default=0.0, ge=0)
    """Weight of the data's own next token beside it."""


PRECISIONS = (
    "fp32",
    "bf16",
    "nano-bf16",
    "nano-nvfp4",
    "super-nvfp4",
    "ultra-nvfp4",
    "mxfp8",
    "weights-nvfp4",
    "weights-fp8",
    "weights-mixed",
)
"""The tables of `model/precision.py` that a run can name."""


def _known(precision: str | dict[str, str]) -> str | dict[str, str]:
    """Refuse a table that nobody knows; patterns of one's own are looked at with the model."""
    name = precision if isinstance(precision, str) else precision.get("base", PRECISIONS[0])
    if name not in PRECISIONS:
        raise ValueError(
            f"there is no precision {name!r}; known are {', '.join(PRECISIONS)}"
            f".{nearest(name, PRECISIONS)}"
        )
    return precision


Precision = Annotated[str | dict[str, str], AfterValidator(_known)]
"""One of `PRECISIONS`, or patterns of matrices to precisions, such as
{ base = "super-nvfp4", "last 4" = "bf16" }."""


class SwitchConfig(Strict):
    """Another precision for the rest of a run."""

    step: int = Field(gt=0)
    """The first step in it; what is left of the run at the end of a decay recovers most of what
    four bits cost (arXiv 2509.25149, section 5)."""
    precision: Precision
    """What holds from then on."""


class Nvfp4Config(Strict):
    """What training in NVFP4 does to operands; all three are on in the family's recipes."""

    tiles: bool = True
    """Whether 16 x 16 weights share a block scale, so that both directions see one weight."""
    stochastic: bool = True
    """Whether gradients are rounded stochastically."""
    transform: bool = True
    """Whether operands of the weight gradient pass a random Hadamard transform."""
    health_every: int = Field(default=100, gt=0)
    """Steps between two that report what rounding loses: shares of values and of weight
    gradients that are exactly zero."""


class TrainConfig(Strict):
    """One training run."""

    model: ModelConfig | str = "pocket"
    """The model: a table of its shape, or the name of a size."""
    init: str | None = None
    """A folder, a run or a hub id with plain weights that the run starts from. Its shape takes the
    place of `model`, and its tokenizer is the run's; None: fresh weights."""
    distil: DistilConfig | None = None
    """The teacher, if there is one."""
    data: DataConfig = Field(default_factory=DataConfig)
    """Where the tokens come from."""
    optim: OptimConfig = Field(default_factory=OptimConfig)
    """How gradients become new weights."""
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    """How the learning rate moves."""
    batch: BatchConfig = Field(default_factory=BatchConfig)
    """How many tokens one step learns from."""
    balance: BalanceConfig = Field(default_factory=BalanceConfig)
    """How the load is spread over experts."""
    mtp: MtpConfig = Field(default_factory=MtpConfig)
    """How the multi-token prediction head learns."""
    steps: int | None = Field(default=None, gt=0)
    """Length of the run in steps."""
    minutes: float | None = Field(default=None, gt=0)
    """Length of the run in minutes, instead of steps: the first steps are timed, and the number
    of steps is fixed then and kept with the run, so that nothing later depends on a clock."""
    precision: Precision = "fp32"
    """Arithmetic of the matrices; master weights are fp32 in all of them."""
    precision_switch: SwitchConfig | None = None
    """Another arithmetic from some step on; None: one for the whole run."""
    nvfp4: Nvfp4Config = Field(default_factory=Nvfp4Config)
    """How training in NVFP4 rounds; without effect on other precisions."""
    gradient_checkpointing: bool = False
    """Whether blocks are computed again in the backward pass, which saves their memory."""
    evaluate_every: int = Field(default=100, gt=0)
    """Steps between two held-out evaluations."""
    save_every: int = Field(default=100, gt=0)
    """Steps between two checkpoints."""
    keep: int = Field(default=3, gt=0)
    """Checkpoints that are kept (the best is kept beside them)."""
    skip_limit: int = Field(default=10, gt=0)
    """Steps in a row that may be skipped because a loss or gradient is not finite."""
    seed: int = 0
    """Where randomness starts: fresh weights, and whatever draws after them."""

    @field_validator("model", mode="before")
    @classmethod
    def _name_or_table(cls, model: Any) -> Any:
        if isinstance(model, Mapping):
            return ModelConfig.of(model)
        if not isinstance(model, str | ModelConfig):
            raise ValueError("give the name of a size or a table of its shape")
        return model

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give the length of the run either as `steps` or as `minutes`")
        self._fits_documents()
        if self.steps is not None:
            self._fits_steps(self.steps)
        return self

    def _fits_documents(self) -> None:
        """Refuse a micro-batch that cannot hold one document."""
        least = min(self.batch.at_once, self.batch.ramp_from or self.batch.at_once)
        if least < self.data.max_length:
            raise ValueError(
                f"a batch of {least} tokens cannot hold a document of data.max_length = "
                f"{self.data.max_length} tokens; make one larger or the other smaller"
            )

    def precision_at(self, step: int) -> Precision:
        """The precision of a step, counted from 0."""
        switch = self.precision_switch
        return self.precision if switch is None or step < switch.step else switch.precision

    def _fits_steps(self, steps: int) -> None:
        """Refuse phases that are longer than the run."""
        if self.precision_switch is not None and self.precision_switch.step >= steps:
            raise ValueError(
                f"precision_switch.step = {self.precision_switch.step} is never reached in a run "
                f"of {steps} steps"
            )
        warmup = self.schedule.warmup
        if warmup >= steps:
            raise ValueError(
                f"a warm-up of {warmup} steps does not fit into a run of {steps} steps"
            )
        decay = round(self.schedule.decay * steps)
        if self.schedule.kind == "wsd" and warmup + decay > steps:
            raise ValueError(
                f"a warm-up of {warmup} and a decay of {decay} steps do not fit into a run of "
                f"{steps} steps; make one of them shorter"
            )
        if self.batch.ramp_steps > steps:
            raise ValueError(
                f"a batch ramp of {self.batch.ramp_steps} steps does not fit into a run of "
                f"{steps} steps"
            )


__all__ = [
    "PRECISIONS",
    "BalanceConfig",
    "BatchConfig",
    "DistilConfig",
    "MtpConfig",
    "Nvfp4Config",
    "OptimConfig",
    "Precision",
    "ScheduleConfig",
    "SwitchConfig",
    "TrainConfig",
]
