#include "io/open_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "base/buffer.h"
#include "base/error.h"
#include "io/file.h"
#include "io/reader.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

// 0, or the errno of the first read past the page cache. At an offset that is a multiple of 4096 only: a disk with
// larger sectors has to show itself.
int try_direct(int fd) {
  Pages page(kReadAlignment, false);
  for (;;) {
    if (::pread(fd, page.data(), kReadAlignment, static_cast<off_t>(kReadAlignment)) >= 0) return 0;
    if (errno != EINTR) return errno;
  }
}

}  // namespace

OpenFile::OpenFile(const std::string& path, uint32_t direct) {
  // O_NONBLOCK: opening a pipe must fail below, not wait for a writer.
  const int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;
  if (direct != SBR_DIRECT_OFF) {
    fd_ = ::open(path.c_str(), flags | O_DIRECT);
    int refusal = fd_ < 0 ? errno : try_direct(fd_);
    if (fd_ >= 0 && refusal != 0) ::close(std::exchange(fd_, -1));
    if (refusal != 0 && refusal != EINVAL && refusal != EOPNOTSUPP) throw_io_error(path, "cannot be read", refusal);
    if (refusal != 0 && direct == SBR_DIRECT_ON) {
      throw Error(SBR_ERR_UNSUPPORTED, path + ": its file system cannot bypass the page cache (O_DIRECT: " +
                                           std::generic_category().message(refusal) + "); use direct I/O auto or off");
    }
    direct_ = refusal == 0;
  }
  if (!direct_) {
    fd_ = ::open(path.c_str(), flags);
    if (fd_ < 0) throw_io_error(path, "cannot be opened", errno);
    // Reading ahead (8 MiB on some machines) would bring units that nobody asked for.
    (void)::posix_fadvise(fd_, 0, 0, POSIX_FADV_RANDOM);
  }
  struct stat status = {};
  if (::fstat(fd_, &status) == 0 && S_ISREG(status.st_mode)) {
    // io_uring answers EAGAIN for such a descriptor where a read would wait (before 5.15), and reads inside submit
    // where the file system cannot do without waiting (overlayfs: 0.1 ms became 6 to 18).
    const int now = ::fcntl(fd_, F_GETFL);
    if (now >= 0 && ::fcntl(fd_, F_SETFL, now & ~O_NONBLOCK) == 0) return;
    const int error = errno;
    ::close(std::exchange(fd_, -1));
    throw_io_error(path, "cannot be opened", error);
  }
  ::close(std::exchange(fd_, -1));
  throw Error(SBR_ERR_IO, path + ": is not a regular file");
}

OpenFile::~OpenFile() {
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace sbr
