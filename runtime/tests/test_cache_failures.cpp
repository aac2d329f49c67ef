// The cache of units when reads fail, bytes are damaged, or it ends: who waits is told, nobody computes with what is
// wrong, and nothing hangs or writes to what is gone. Run under the thread and the address sanitizer too.
#include <cerrno>

#include "cached_units.h"

namespace {

using sbr::CacheOptions;
using sbr::UnitCache;
using sbr_test::Door;
using sbr_test::Fixture;
using sbr_test::kUnitBytes;
using sbr_test::kUnits;
using sbr_test::says;
using sbr_test::shows;
using sbr_test::Tamper;

void test_read_error(const Fixture& fixture) {
  std::atomic<int> failures{2};
  Tamper tamper([&](uint64_t offset, uint64_t, uint8_t*, int64_t result) -> int64_t {
    return offset == Fixture::offset(15) && failures-- > 0 ? -EIO : result;
  });
  UnitCache cache(fixture.source(), fixture.options(4, &tamper));
  EXPECT(cache.failure().empty() && cache.failure_status() == SBR_OK);
  {
    const UnitCache::Pin bad = cache.acquire(15), good = cache.acquire(16);
    std::atomic<int> told{0};
    std::vector<std::thread> waiting;
    for (int i = 0; i < 3; ++i) waiting.emplace_back([&] { told += !bad.wait(); });
    for (std::thread& thread : waiting) thread.join();
    EXPECT(told == 3 && bad.ready() && shows(good, 16));
    EXPECT(!cache.acquire(15).wait());  // as long as somebody pins it, it stays failed
  }
  EXPECT(says(cache.failure(), fixture.file.path() + ": expert 3 of layer 2: cannot be read: Input/output error"));
  EXPECT(cache.failure_status() == SBR_ERR_IO);
  cache.clear_failure();
  EXPECT(!cache.acquire(15).wait());
  cache.clear_failure();
  EXPECT(cache.failure().empty());
  EXPECT(shows(cache.acquire(15), 15) && cache.failure().empty());
  // A guess that fails is nobody's failure.
  failures = 1;
  UnitCache other(fixture.source(), fixture.options(8, &tamper));
  other.guess(15);
  while (failures > 0) std::this_thread::yield();
  EXPECT(other.failure().empty());
}

// Somebody acquires a guess while its read fails: it is read once more, and only a second failure is one.
void test_guess_fails_while_needed(const Fixture& fixture) {
  for (const int fails : {1, 2}) {
    std::atomic<int> failures{fails};
    Door door;
    Tamper tamper([&](uint64_t offset, uint64_t, uint8_t*, int64_t result) -> int64_t {
      door.pass();
      return offset == Fixture::offset(15) && failures-- > 0 ? -EIO : result;
    });
    UnitCache cache(fixture.source(), fixture.options(8, &tamper));
    cache.guess(15);
    door.await_arrivals(1);
    const UnitCache::Pin pin = cache.acquire(15);
    door.open();
    const bool read = fails == 1;
    EXPECT(pin.wait() == read && cache.failure().empty() == read && cache.counters().loads == (read ? 1 : 0));
  }
}

// A flipped bit, wherever it is, is told before anybody computes with it, and every time it is read again.
void test_damage(Fixture& fixture) {
  for (const uint32_t verify : {SBR_VERIFY_FIRST, SBR_VERIFY_EVERY}) {
    CacheOptions options = fixture.options(2);
    options.verify = verify;
    options.reader.direct = SBR_DIRECT_OFF;  // the flip below goes through the page cache
    UnitCache cache(fixture.source(), options);
    fixture.file.flip(Fixture::offset(22) + kUnitBytes - 1);
    for (int i = 0; i < 2; ++i) {
      EXPECT(!cache.acquire(22).wait());
      EXPECT(says(cache.failure(), "expert 4 of layer 3: its bytes are not those that were written"));
      EXPECT(cache.failure_status() == SBR_ERR_FORMAT);
      cache.clear_failure();
    }
    fixture.file.mend(Fixture::offset(22) + kUnitBytes - 1);
    EXPECT(shows(cache.acquire(22), 22));
  }
}

void test_cut_short(uint32_t kind) {
  Fixture fixture;
  fixture.kind = kind;
  UnitCache cache(fixture.source(), fixture.options(4));
  EXPECT(shows(cache.acquire(23), 23));
  fixture.file.cut(Fixture::offset(20) + 5000);
  EXPECT(!cache.acquire(20).wait() && !cache.acquire(21).wait());
  EXPECT(shows(cache.acquire(19), 19) && shows(cache.acquire(23), 23));
  EXPECT(says(cache.failure(), "expert 2 of layer 3: cannot be read"));
}

// The end of a cache whose reads are under way or wait: no hang, and nobody writes to what is gone.
void test_end(const Fixture& fixture) {
  for (uint32_t round = 0; round < 30; ++round) {
    UnitCache cache(fixture.source(), fixture.options(kUnits));
    for (uint32_t unit = 0; unit < kUnits; ++unit) {
      if (unit % 3 == 0) {
        cache.guess(unit);
      } else {
        cache.acquire(unit);
      }
    }
    if (round % 3 == 0) EXPECT(shows(cache.acquire(round % kUnits), round % kUnits));
  }
}

// A guess fails while the cache ends: what would read it once more finds a reader that does not.
void test_guess_fails_at_the_end(const Fixture& fixture) {
  Door door;
  std::atomic<uint32_t> reads{0};
  Tamper tamper([&](uint64_t, uint64_t, uint8_t*, int64_t) -> int64_t {
    door.pass();
    ++reads;
    return -EIO;
  });
  std::thread opener;
  {
    UnitCache cache(fixture.source(), fixture.options(8, &tamper));
    cache.guess(15);
    door.await_arrivals(1);
    opener = std::thread([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));  // the cache begins to end before, as a rule
      door.open();
    });
  }
  opener.join();
  EXPECT(reads == 1 || reads == 2);  // 2: this machine stood still, and the door opened before the end
}

// A guess that arrives just before its slot is given to another unit, whose read then fails: a slot that was listed
// twice as being read was emptied twice, which wrote 4 GiB behind a table. Every fifth run of these rounds crashed;
// they run in every build of the tests.
void test_guesses_arrive_while_others_fail(const Fixture& fixture) {
  std::atomic<uint32_t> reads{0};
  Tamper tamper(
      [&](uint64_t, uint64_t, uint8_t*, int64_t result) -> int64_t { return ++reads % 8 < 5 ? -EIO : result; });
  sbr::UnitSource source = fixture.source();
  source.unit_bytes = 4096;
  source.n_units = (kUnits * kUnitBytes) / 4096;
  source.offset = [](uint32_t unit) -> uint64_t { return Fixture::offset(0) + unit * 4096; };
  source.intact = [](uint32_t, const uint8_t*) { return true; };
  CacheOptions options = fixture.options(16, &tamper);
  UnitCache cache(source, options);
  uint32_t random = 1;
  const auto any_unit = [&] {
    random = random * 1664525 + 1013904223;
    return (random >> 8) % source.n_units;
  };
  for (uint32_t round = 0; round < 20000; ++round) {
    for (int i = 0; i < 4; ++i) cache.guess(any_unit());
    if (round % 3 == 0) cache.drop_guesses();
    const UnitCache::Pin pin = cache.acquire(any_unit()), other = cache.acquire(any_unit());
    EXPECT(pin && other);
    if (round % 4 == 0) pin.wait();
  }
}

}  // namespace

int main() {
  sbr_test::with_each_reader("test_cache_failures", [](Fixture& fixture) {
    test_guess_fails_while_needed(fixture);
    test_read_error(fixture);
    test_damage(fixture);
    test_cut_short(fixture.kind);
    test_end(fixture);
    test_guess_fails_at_the_end(fixture);
    test_guesses_arrive_while_others_fail(fixture);
  });
  return sbr_test::finish("test_cache_failures");
}
