// Memory that a thread keeps from one item to the next.
#pragma once

#include <cstdint>
#include <memory>

namespace FATHOM_TIER {

// Memory of one thread that only grows.
class Scratch {
 public:
  template <class T>
  T* take(int64_t n) {
    int64_t bytes = (n * int64_t(sizeof(T)) + 63) / 64 * 64;
    T* taken = reinterpret_cast<T*>(begin_ + used_);
    used_ += bytes;
    return taken;
  }
  void reserve(int64_t bytes) {
    used_ = 0;
    if (bytes <= size_) return;
    held_.reset(new char[bytes + 64]);
    size_ = bytes;
    begin_ = held_.get() + (64 - reinterpret_cast<uintptr_t>(held_.get()) % 64) % 64;
  }

 private:
  std::unique_ptr<char[]> held_;
  char* begin_ = nullptr;
  int64_t size_ = 0, used_ = 0;
};

}  // namespace FATHOM_TIER
