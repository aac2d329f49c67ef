// Uninitialised memory aligned for every vector width and for cache lines, freed by its owner.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>

namespace sbr {

// Small and medium buffers of trivial types. Cleared to zero: no result may depend on stale memory.
template <typename T>
class Buffer {
  static_assert(std::is_trivially_copyable<T>::value, "Buffer neither constructs nor destroys");

 public:
  static constexpr size_t kAlignment = 64;

  Buffer() = default;
  // `allocate` false: only its size is asked for, and there is no memory.
  explicit Buffer(size_t size, bool allocate = true) : size_(size) {
    if (size == 0 || !allocate) return;
    if (size > SIZE_MAX / sizeof(T)) throw std::bad_alloc();
    data_ = static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t(kAlignment)));
    for (size_t i = 0; i < size; ++i) data_[i] = T();
  }
  ~Buffer() {
    if (data_ != nullptr) ::operator delete(static_cast<void*>(data_), std::align_val_t(kAlignment));
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  size_t size() const { return size_; }
  size_t bytes() const { return size_ * sizeof(T); }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }

  T* data_ = nullptr;
  size_t size_ = 0;
};

// Large anonymous memory, page aligned; pages appear (as zeros) when first touched. `whole`: all of it will be used.
// It then asks for huge pages, since gathered rows of a 2 GB matrix otherwise miss the TLB on nearly every row, and has
// the system refuse at once (std::bad_alloc) what it cannot hold, rather than end the process at some later touch.
class Pages {
 public:
  static constexpr size_t kHuge = 2 << 20;  // x86-64, and aarch64 with pages of 4 KB

  Pages() = default;
  Pages(size_t bytes, bool whole) : bytes_(bytes) {
    if (bytes == 0) return;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (whole ? 0 : MAP_NORESERVE);
    // Kernels before 6.7 do not align a mapping to huge pages, and the first and last of a misaligned one stay small.
    const size_t spare = whole && bytes >= kHuge ? kHuge : 0;
    if (bytes > SIZE_MAX - spare) throw std::bad_alloc();
    void* map = mmap(nullptr, bytes + spare, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (map == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<uint8_t*>(map);
    if (spare != 0) {
      const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
      const size_t head = (kHuge - reinterpret_cast<uintptr_t>(data_) % kHuge) % kHuge;
      const size_t used = (bytes + page - 1) / page * page;
      const size_t mapped = (bytes + spare + page - 1) / page * page;
      if (head != 0) munmap(data_, head);
      data_ += head;
      if (head + used < mapped) munmap(data_ + used, mapped - head - used);
    }
#ifdef MADV_HUGEPAGE
    if (whole) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
  }
  ~Pages() {
    if (data_ != nullptr) munmap(data_, bytes_);
  }
  Pages(Pages&& other) noexcept { swap(other); }
  Pages& operator=(Pages&& other) noexcept {
    swap(other);
    return *this;
  }

  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }

  // Gives the whole pages within [offset, offset + length) back; they read as zeros from now on.
  void release(size_t offset, size_t length) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t begin = (offset + page - 1) / page * page, end = (offset + length) / page * page;
    if (begin < end) madvise(data_ + begin, end - begin, MADV_DONTNEED);
  }

  // Writes one byte per page, so that all of it is resident.
  void touch() {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    for (size_t i = 0; i < bytes_; i += page) static_cast<volatile uint8_t*>(data_)[i] = 0;
  }

 private:
  void swap(Pages& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace sbr
