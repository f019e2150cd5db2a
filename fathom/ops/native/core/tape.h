// A list of native calls that can be made again without Python, and how calls get onto it.
//
// Promise: a call that is bound with `recorded` runs as always; while a tape records on this thread, it is
// also written down with its arguments (numbers and addresses). Replaying makes the same calls in the same
// order, so results are the same bits as long as the addresses hold what they held.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <vector>

#include "core/parallel.h"

namespace FATHOM_TIER {

// Where a tensor's values begin; what lies there is the callee's knowledge.
using Address = uint64_t;

template <class T>
inline T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

class Tape {
 public:
  void begin() { recording = this; }
  void end() { recording = nullptr; }
  void push(const char* name, std::function<void()> call) { calls_.push_back({name, std::move(call)}); }
  int64_t size() const { return int64_t(calls_.size()); }
  const char* name(int64_t i) const { return calls_.at(size_t(i)).name; }

  void replay() const {
    for (const auto& call : calls_) call.make();
  }

  // Replay, and add the nanoseconds of every call to `spent`.
  void replay_timed(std::vector<int64_t>& spent) const {
    using Clock = std::chrono::steady_clock;
    spent.resize(calls_.size());
    for (size_t i = 0; i < calls_.size(); i++) {
      auto begin = Clock::now();
      calls_[i].make();
      spent[i] += std::chrono::nanoseconds(Clock::now() - begin).count();
    }
  }

  static thread_local Tape* recording;

 private:
  struct Call {
    const char* name;
    std::function<void()> make;
  };
  std::vector<Call> calls_;
};

template <auto F>
struct Recorded;

template <class... A, void (*F)(A...)>
struct Recorded<F> {
  // What Python calls it; set when it is bound.
  static inline const char* name = "";

  static void call(A... arguments) {
    F(arguments...);
    if (Tape::recording) Tape::recording->push(name, [=] { F(arguments...); });
  }
};

// What a kernel `void f(...)` is bound as.
template <auto F>
constexpr auto recorded = &Recorded<F>::call;

}  // namespace FATHOM_TIER
