// A cache over a file whose units have bytes that can be recomputed, and what its tests say about it.
#pragma once

#include <cstdio>
#include <string>

#include "base/error.h"
#include "expect.h"
#include "experts/cache.h"
#include "read_tests.h"

namespace sbr_test {

constexpr uint32_t kLayers = 4, kPerLayer = 6, kUnits = kLayers * kPerLayer;
constexpr uint64_t kUnitBytes = 3 * 4096, kHeader = 4096;

struct Fixture {
  PatternFile file{"cached_units", kHeader + kUnits* kUnitBytes};
  uint32_t kind = SBR_IO_PREAD;

  static uint64_t offset(uint32_t unit) { return kHeader + unit * kUnitBytes; }

  sbr::UnitSource source() const {
    return {file.path(),
            kUnitBytes,
            kUnits,
            kPerLayer,
            offset,
            [](uint32_t unit, const uint8_t* bytes) { return holds(bytes, offset(unit), kUnitBytes); },
            [](uint32_t unit) {
              return "expert " + std::to_string(unit % kPerLayer) + " of layer " + std::to_string(unit / kPerLayer);
            }};
  }

  // With room for `capacity` units and a bit.
  sbr::CacheOptions options(uint32_t capacity, sbr::ReadTamper* tamper = nullptr, uint32_t threads = 0) const {
    sbr::CacheOptions options;
    options.bytes = capacity * kUnitBytes + 100;
    options.reader.kind = kind;
    options.reader.tamper = tamper;
    options.reader.threads = threads;
    return options;
  }
};

inline bool shows(const sbr::UnitCache::Pin& pin, uint32_t unit) {
  return pin.wait() && pin.ready() && holds(pin.data(), Fixture::offset(unit), kUnitBytes);
}

inline sbr::Error error_of(const Fixture& fixture, const sbr::CacheOptions& options) {
  try {
    sbr::UnitCache cache(fixture.source(), options);
  } catch (const sbr::Error& error) {
    return error;
  }
  return {SBR_OK, "nothing was thrown"};
}

inline bool says(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// With every kind of reader that can be had here.
template <typename Tests>
void with_each_reader(const char* name, const Tests& tests) {
  Fixture fixture;
  for (const uint32_t kind : {SBR_IO_PREAD, SBR_IO_URING}) {
    fixture.kind = kind;
    const sbr::Error refused = error_of(fixture, fixture.options(1));
    if (refused.status() != SBR_OK) {  // an emulator without io_uring
      EXPECT(refused.status() == SBR_ERR_UNSUPPORTED);
      std::printf("%s: left out: %s\n", name, refused.what());
      continue;
    }
    tests(fixture);
  }
}

}  // namespace sbr_test
