// A file opened for reading, past the page cache where that is wanted and possible.
#pragma once

#include <cstdint>
#include <string>

namespace sbr {

class OpenFile {
 public:
  // `direct` is SBR_DIRECT_*. Whether O_DIRECT is possible is settled here, by a first read, since some file systems
  // let a file be opened that way and refuse to read. Errors: IO naming the path; UNSUPPORTED with SBR_DIRECT_ON.
  OpenFile(const std::string& path, uint32_t direct);
  ~OpenFile();
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  int fd() const { return fd_; }
  bool direct() const { return direct_; }

 private:
  int fd_ = -1;
  bool direct_ = false;
};

}  // namespace sbr
