// Files as the runtime needs them: a read-only mapping, and an output file that appears under its name only
// when it is complete. Errors are sbr::Error(SBR_ERR_IO) that name the path and say what the system said.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace sbr {

// sysconf(_SC_PAGESIZE): 4 KiB on most machines, 16 KiB on a Raspberry Pi 5.
size_t page_size();

// Throws "<path>: <what>: <text of error_number>".
[[noreturn]] void throw_io_error(const std::string& path, const char* what, int error_number);

class MappedFile {
 public:
  static MappedFile open(const std::string& path);

  MappedFile() = default;
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* data() const { return data_; }  // page-aligned; NULL when the file is empty
  uint64_t size() const { return size_; }

  // Hints; they never fail. release() gives the pages that [offset, offset + length) touches back.
  void read_sequentially() const;
  void read_randomly() const;  // a page at a time, without what lies around it
  void release(uint64_t offset, uint64_t length) const;

 private:
  const uint8_t* data_ = nullptr;
  uint64_t size_ = 0;
};

// A file that is read piece by piece, by any number of threads: unlike a mapping it reports what storage cannot read.
class InputFile {
 public:
  explicit InputFile(const std::string& path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  uint64_t size() const { return size_; }  // as it was when the file was opened
  // All of them, or an error.
  void read_at(uint64_t offset, void* data, size_t length) const;
  // Gives the file's pages in the page cache back, as far as nobody else has them mapped.
  void drop_cached() const;

 private:
  std::string path_;
  int fd_ = -1;
  uint64_t size_ = 0;
};

// A file of known size (zeros where nothing is written), written as `path`.part by any number of threads. commit()
// makes it durable and renames it; without commit() the destructor removes it. What a process that was killed left
// behind is replaced; while another one is writing, the constructor fails.
class OutputFile {
 public:
  // Fails at once, with both numbers, when the file system has less than `bytes` free.
  OutputFile(const std::string& path, uint64_t bytes);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write_at(uint64_t offset, const void* data, size_t length);
  void commit();
  // Call it after commit(): gives what was written back from the page cache. Pages there count for the memory limit of
  // whoever wrote them, so that a reader in another group would get them for nothing.
  void drop_cached() const;

 private:
  void open_part();
  void remove();

  std::string path_;
  std::string part_;
  int fd_ = -1;
  bool committed_ = false;
};

}  // namespace sbr
