// The two ways of reading, behind Reader::open (reader.cpp).
#pragma once

#include <memory>
#include <string>

#include "io/open_file.h"
#include "io/reader.h"

namespace sbr {

std::unique_ptr<Reader> make_pread_reader(std::unique_ptr<OpenFile> file, const ReaderOptions& options,
                                          ReadListener* listener);

// nullptr when the kernel refuses, *refusal saying how.
std::unique_ptr<Reader> make_uring_reader(std::unique_ptr<OpenFile> file, const ReaderOptions& options,
                                          ReadListener* listener, std::string* refusal);

}  // namespace sbr
