// For tests of what reads files: a file whose bytes tell where they are from, and a kernel that can be made to err.
#pragma once

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "io/reader.h"
#include "synth/random.h"

namespace sbr_test {

// What the 8 bytes at `offset` of every such file are.
inline uint64_t word_at(uint64_t offset) { return sbr::random_u64(20261122, offset / 8); }

inline bool holds(const uint8_t* bytes, uint64_t offset, uint64_t length) {
  for (uint64_t i = 0; i < length; i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes + i, sizeof word);
    if (word != word_at(offset + i)) return false;
  }
  return true;
}

// A file in the working directory; removed with this.
class PatternFile {
 public:
  PatternFile(const char* name, uint64_t bytes)
      : path_(std::string(name) + "." + std::to_string(::getpid()) + "." + std::to_string(count_++)) {
    std::vector<uint64_t> words(bytes / 8);
    for (uint64_t i = 0; i < words.size(); ++i) words[i] = word_at(8 * i);
    write(0, words.data(), bytes, "wb");
  }
  ~PatternFile() { std::remove(path_.c_str()); }
  PatternFile(const PatternFile&) = delete;
  PatternFile& operator=(const PatternFile&) = delete;

  const std::string& path() const { return path_; }
  void flip(uint64_t offset) { overwrite(offset, byte_at(offset) ^ 1); }
  void mend(uint64_t offset) { overwrite(offset, byte_at(offset)); }
  void cut(uint64_t bytes) {
    if (::truncate(path_.c_str(), static_cast<off_t>(bytes)) != 0) std::abort();
  }

 private:
  static uint8_t byte_at(uint64_t offset) {
    const uint64_t word = word_at(offset);
    uint8_t bytes[8];
    std::memcpy(bytes, &word, sizeof word);
    return bytes[offset % 8];
  }
  void overwrite(uint64_t offset, uint8_t byte) { write(offset, &byte, 1, "r+b"); }
  void write(uint64_t offset, const void* data, size_t bytes, const char* mode) {
    std::FILE* file = std::fopen(path_.c_str(), mode);
    if (file == nullptr || std::fseek(file, static_cast<long>(offset), SEEK_SET) != 0 ||
        std::fwrite(data, 1, bytes, file) != bytes || std::fclose(file) != 0) {
      std::abort();
    }
  }

  inline static uint32_t count_ = 0;
  const std::string path_;
};

// Answers that a function makes up; without one, the kernel's.
class Tamper : public sbr::ReadTamper {
 public:
  using Answer = std::function<int64_t(uint64_t offset, uint64_t length, uint8_t* to, int64_t result)>;
  explicit Tamper(Answer answer) : answer_(std::move(answer)) {}
  int64_t answer(uint64_t offset, uint64_t length, uint8_t* to, int64_t result) override {
    return answer_(offset, length, to, result);
  }

 private:
  const Answer answer_;
};

// A door that reads wait at until it is opened, and that counts who has come.
class Door {
 public:
  void pass() {
    std::unique_lock<std::mutex> lock(mutex_);
    ++waiting_;
    moved_.notify_all();
    moved_.wait(lock, [this] { return open_; });
  }
  void open() {
    const std::lock_guard<std::mutex> lock(mutex_);
    open_ = true;
    moved_.notify_all();
  }
  void await_arrivals(uint32_t n) {
    std::unique_lock<std::mutex> lock(mutex_);
    moved_.wait(lock, [&] { return waiting_ >= n; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable moved_;
  bool open_ = false;
  uint32_t waiting_ = 0;
};

// What was told, in order.
class Listener : public sbr::ReadListener {
 public:
  struct Told {
    uint64_t tag;
    int error;
  };

  void read_done(uint64_t tag, int error) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    told_.push_back({tag, error});
    moved_.notify_all();
  }
  // The first n; fewer after half a minute.
  std::vector<Told> first(size_t n) {
    std::unique_lock<std::mutex> lock(mutex_);
    moved_.wait_for(lock, std::chrono::seconds(30), [&] { return told_.size() >= n; });
    return told_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable moved_;
  std::vector<Told> told_;
};

}  // namespace sbr_test
