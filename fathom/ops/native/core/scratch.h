// Memory that a thread keeps for its next call, so that small steps never ask the system for any.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace FATHOM_TIER {

// A buffer of one thread, aligned to a cache line, that only grows. Each `Use` is a buffer of its own.
template <class Use>
class Scratch {
 public:
  static void* bytes(int64_t wanted) {
    static thread_local Scratch own;
    if (wanted > own.size_) {
      std::free(own.data_);
      own.size_ = (wanted + wanted / 4 + 63) / 64 * 64;
      own.data_ = std::aligned_alloc(64, own.size_);
    }
    return own.data_;
  }

  template <class T>
  static T* of(int64_t values) {
    return static_cast<T*>(bytes(values * int64_t(sizeof(T))));
  }

  ~Scratch() { std::free(data_); }

 private:
  void* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace FATHOM_TIER
