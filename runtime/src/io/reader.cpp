#include "io/reader.h"

#include <unistd.h>

#include <system_error>
#include <utility>

#include "base/error.h"
#include "io/readers.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

// Android ends a process that calls io_uring_setup (seccomp), so it is not even tried; a library built for other
// Linuxes may run there too.
bool may_try_uring() {
#if defined(__ANDROID__)
  return false;
#else
  return ::access("/system/bin/linker64", F_OK) != 0 && ::access("/system/bin/linker", F_OK) != 0;
#endif
}

}  // namespace

std::unique_ptr<Reader> Reader::open(const std::string& path, const ReaderOptions& options,
                                     ReadListener* listener) try {
  if (options.direct > SBR_DIRECT_OFF) {
    throw Error(SBR_ERR_ARGUMENT,
                "options.io_direct is " + std::to_string(options.direct) + ", expected one of SBR_DIRECT_*");
  }
  if (options.threads > 64) {
    throw Error(SBR_ERR_ARGUMENT, "options.io_threads is " + std::to_string(options.threads) + ", more than 64");
  }
  auto file = std::make_unique<OpenFile>(path, options.direct);
  switch (options.kind) {
    case SBR_IO_PREAD:
      return make_pread_reader(std::move(file), options, listener);
    case SBR_IO_AUTO:
    case SBR_IO_URING:
      break;
    default:
      throw Error(SBR_ERR_ARGUMENT, "options.io is " + std::to_string(options.kind) + ", expected one of SBR_IO_*");
  }
  std::string refusal = "Android does not let it be tried";
  if (may_try_uring()) {
    auto reader = make_uring_reader(std::move(file), options, listener, &refusal);
    if (reader != nullptr) return reader;
    file = std::make_unique<OpenFile>(path, options.direct);
  }
  if (options.kind == SBR_IO_URING) {
    throw Error(SBR_ERR_UNSUPPORTED, "io_uring cannot be used here: " + refusal + "; use io auto or pread");
  }
  return make_pread_reader(std::move(file), options, listener);
} catch (const std::system_error& error) {  // by std::thread
  throw Error(SBR_ERR_MEMORY,
              std::string("The operating system refused to start a thread that reads: ") + error.what());
}

}  // namespace sbr
