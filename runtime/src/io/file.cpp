#include "io/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

// Closes a descriptor that an exception would leak.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

std::string directory_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

int open_to_read(const std::string& path) {
  // O_NONBLOCK: opening a pipe must fail in size_of_regular, not wait for a writer.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) throw_io_error(path, "cannot be opened", errno);
  return fd;
}

uint64_t size_of_regular(int fd, const std::string& path) {
  struct stat status = {};
  if (::fstat(fd, &status) != 0) throw_io_error(path, "cannot be examined", errno);
  if (!S_ISREG(status.st_mode)) throw Error(SBR_ERR_IO, path + ": is not a regular file");
  return static_cast<uint64_t>(status.st_size);
}

// A rename is durable only when its directory is. File systems that cannot sync a directory say EINVAL.
void sync_directory(const std::string& path) {
  const Descriptor directory(::open(directory_of(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() >= 0) (void)::fsync(directory.get());
}

}  // namespace

size_t page_size() { return static_cast<size_t>(::sysconf(_SC_PAGESIZE)); }

void throw_io_error(const std::string& path, const char* what, int error_number) {
  throw Error(SBR_ERR_IO, path + ": " + what + ": " + std::generic_category().message(error_number));
}

MappedFile MappedFile::open(const std::string& path) {
  const Descriptor fd(open_to_read(path));
  MappedFile file;
  file.size_ = size_of_regular(fd.get(), path);
  if (file.size_ == 0) return file;
  if (file.size_ > SIZE_MAX) throw Error(SBR_ERR_IO, path + ": is larger than this machine's address space");
  void* address = ::mmap(nullptr, static_cast<size_t>(file.size_), PROT_READ, MAP_SHARED, fd.get(), 0);
  if (address == MAP_FAILED) {
    file.size_ = 0;
    throw_io_error(path, "cannot be mapped", errno);
  }
  file.data_ = static_cast<const uint8_t*>(address);
  return file;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(size_));
}

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void MappedFile::read_sequentially() const {
  if (data_ != nullptr) (void)::madvise(const_cast<uint8_t*>(data_), static_cast<size_t>(size_), MADV_SEQUENTIAL);
}

void MappedFile::read_randomly() const {
  if (data_ != nullptr) (void)::madvise(const_cast<uint8_t*>(data_), static_cast<size_t>(size_), MADV_RANDOM);
}

void MappedFile::release(uint64_t offset, uint64_t length) const {
  if (data_ == nullptr || offset >= size_) return;
  if (length > size_ - offset) length = size_ - offset;
  const uint64_t begin = offset - offset % page_size();
  (void)::madvise(const_cast<uint8_t*>(data_) + begin, static_cast<size_t>(offset + length - begin), MADV_DONTNEED);
}

InputFile::InputFile(const std::string& path) : path_(path) {
  Descriptor fd(open_to_read(path));
  size_ = size_of_regular(fd.get(), path);
  fd_ = fd.release();
}

InputFile::~InputFile() { ::close(fd_); }

void InputFile::read_at(uint64_t offset, void* data, size_t length) const {
  auto* bytes = static_cast<uint8_t*>(data);
  while (length > 0) {
    const ssize_t got = ::pread(fd_, bytes, length, static_cast<off_t>(offset));
    if (got < 0) {
      if (errno == EINTR) continue;
      throw_io_error(path_, ("cannot be read at byte " + std::to_string(offset)).c_str(), errno);
    }
    if (got == 0) throw Error(SBR_ERR_IO, path_ + ": ends at byte " + std::to_string(offset) + " while it is read");
    bytes += got;
    offset += static_cast<uint64_t>(got);
    length -= static_cast<size_t>(got);
  }
}

void InputFile::drop_cached() const { (void)::posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED); }

OutputFile::OutputFile(const std::string& path, uint64_t bytes) : path_(path), part_(path + ".part") {
  struct statvfs space = {};
  const std::string directory = directory_of(path);
  if (::statvfs(directory.c_str(), &space) != 0) throw_io_error(path, "cannot be created", errno);
  open_part();
  // An unfinished file of an earlier attempt is about to be replaced: its space counts as free.
  struct stat old = {};
  const uint64_t reusable = ::fstat(fd_, &old) == 0 ? static_cast<uint64_t>(old.st_blocks) * 512 : 0;
  const uint64_t available = static_cast<uint64_t>(space.f_bavail) * space.f_frsize + reusable;
  if (available < bytes) {
    remove();
    throw Error(SBR_ERR_IO, path + ": needs " + std::to_string(bytes) + " bytes, but its file system has only " +
                                std::to_string(available) + " bytes of free space");
  }
  // Reserving the space now keeps the disk from filling up half way. Not every file system can; unwritten parts are
  // zeros either way.
  const auto length = static_cast<off_t>(bytes);
  if (::ftruncate(fd_, 0) != 0 ||
      (::fallocate(fd_, 0, 0, length) != 0 && (errno == ENOSPC || ::ftruncate(fd_, length) != 0))) {
    const int reason = errno;
    remove();
    throw_io_error(part_, "cannot be written", reason);
  }
}

// Two writers of one file would rename each other's unfinished parts: the first one has the lock until it ends, however
// it ends. (A file system without locks trusts its callers.)
void OutputFile::open_part() {
  constexpr int kAttempts = 100;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    Descriptor fd(::open(part_.c_str(), O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0644));
    if (fd.get() < 0) throw_io_error(part_, "cannot be created", errno);
    (void)size_of_regular(fd.get(), part_);
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
      throw Error(SBR_ERR_IO, path_ + ": is being written by another process; wait until it is done");
    // Between opening and locking, the writer before may have renamed or removed it.
    struct stat mine = {}, named = {};
    if (::fstat(fd.get(), &mine) == 0 && ::stat(part_.c_str(), &named) == 0 && mine.st_dev == named.st_dev &&
        mine.st_ino == named.st_ino) {
      fd_ = fd.release();
      return;
    }
  }
  throw Error(SBR_ERR_IO, path_ + ": other processes keep creating and removing it; wait until they are done");
}

OutputFile::~OutputFile() { remove(); }

void OutputFile::remove() {
  if (fd_ < 0) return;
  if (!committed_) (void)::unlink(part_.c_str());  // before the lock is given up with the descriptor
  ::close(std::exchange(fd_, -1));
}

void OutputFile::write_at(uint64_t offset, const void* data, size_t length) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  const uint64_t begin = offset;
  const size_t total = length;
  while (length > 0) {
    const ssize_t written = ::pwrite(fd_, bytes, length, static_cast<off_t>(offset));
    if (written < 0) {
      if (errno == EINTR) continue;
      throw_io_error(part_, "cannot be written", errno);
    }
    bytes += written;
    offset += static_cast<uint64_t>(written);
    length -= static_cast<size_t>(written);
  }
  // Starts the write-back now, so that the fsync of commit() does not find gigabytes waiting.
  (void)::sync_file_range(fd_, static_cast<off_t>(begin), static_cast<off_t>(total), SYNC_FILE_RANGE_WRITE);
}

void OutputFile::commit() {
  if (::fsync(fd_) != 0) throw_io_error(part_, "cannot be written", errno);
  if (::rename(part_.c_str(), path_.c_str()) != 0) throw_io_error(path_, "cannot be created", errno);
  committed_ = true;
  sync_directory(path_);
}

void OutputFile::drop_cached() const { (void)::posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED); }

}  // namespace sbr
