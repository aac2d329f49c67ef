// The cache of units: what is pinned stays what it is, whatever else is asked for, guessed, cancelled or fails; and a
// random life with a model that checks every byte. Run under the thread and the address sanitizer too.
#include <algorithm>
#include <memory>

#include "base/thread_pool.h"
#include "cached_units.h"

namespace {

using sbr::CacheOptions;
using sbr::UnitCache;
using sbr_test::Door;
using sbr_test::Fixture;
using sbr_test::holds;
using sbr_test::kHeader;
using sbr_test::kLayers;
using sbr_test::kPerLayer;
using sbr_test::kUnitBytes;
using sbr_test::kUnits;
using sbr_test::says;
using sbr_test::shows;
using sbr_test::Tamper;

// ---- one thing at a time ---------------------------------------------------------------------------

void test_options(const Fixture& fixture) {
  CacheOptions options = fixture.options(1);
  options.bytes = kUnitBytes - 1;
  const sbr::Error small = sbr_test::error_of(fixture, options);
  EXPECT(small.status() == SBR_ERR_ARGUMENT && says(small.what(), "at least " + std::to_string(kUnitBytes)));
  options = fixture.options(1);
  options.policy = SBR_CACHE_BELADY;
  EXPECT(says(sbr_test::error_of(fixture, options).what(), "options.cache_policy is 60"));
  options = fixture.options(1);
  options.verify = 9;
  EXPECT(says(sbr_test::error_of(fixture, options).what(), "options.verify is 9"));
  UnitCache whole(fixture.source(), fixture.options(1000));
  EXPECT(whole.capacity() == kUnits && whole.bytes() == kUnits * kUnitBytes);
}

void test_counters(const Fixture& fixture) {
  CacheOptions options = fixture.options(2);
  options.policy = SBR_CACHE_LRU;
  UnitCache cache(fixture.source(), options);
  EXPECT(cache.capacity() == 2 && cache.reader().kind == fixture.kind);
  const auto use = [&](uint32_t unit) { EXPECT(shows(cache.acquire(unit), unit)); };
  for (const uint32_t unit : {0u, 7u, 0u, 13u, 0u, 7u}) use(unit);  // 13 evicts 7; 7 evicts 13
  sbr_cache_counters c = cache.counters();
  EXPECT(c.struct_size == sizeof c && c.requests == 6 && c.hits == 2 && c.loads == 4 && c.evictions == 2);
  EXPECT(c.bytes_read == 4 * kUnitBytes && c.verified == 3 && c.ns_io_busy > 0 && c.late <= 4 && c.guesses == 0);
  cache.reset_counters();
  use(7);
  c = cache.counters();
  EXPECT(c.requests == 1 && c.hits == 1 && c.loads == 0 && c.bytes_read == 0 && c.ns_io_busy == 0 && c.verified == 0);
}

void test_verify(const Fixture& fixture) {
  for (const uint32_t verify : {SBR_VERIFY_FIRST, SBR_VERIFY_EVERY, SBR_VERIFY_NEVER}) {
    CacheOptions options = fixture.options(1);
    options.verify = verify;
    UnitCache cache(fixture.source(), options);
    for (const uint32_t unit : {1u, 2u, 1u, 2u}) EXPECT(shows(cache.acquire(unit), unit));
    EXPECT(cache.counters().verified == (verify == SBR_VERIFY_FIRST ? 2 : verify == SBR_VERIFY_EVERY ? 4 : 0));
  }
}

// Every slot pinned: an empty Pin, at once. One released: that one's slot.
void test_all_pinned(const Fixture& fixture) {
  UnitCache cache(fixture.source(), fixture.options(3));
  std::vector<UnitCache::Pin> pins;
  for (const uint32_t unit : {0u, 6u, 12u}) pins.push_back(cache.acquire(unit));
  EXPECT(!cache.acquire(18));
  cache.guess(18);
  EXPECT(!cache.has(18) && cache.counters().requests == 3);
  EXPECT(shows(cache.acquire(6), 6));  // a second pin of the same
  pins[1] = UnitCache::Pin();
  const UnitCache::Pin pin = cache.acquire(18);
  EXPECT(pin && shows(pin, 18) && !cache.has(6));
  EXPECT(shows(pins[0], 0) && shows(pins[2], 12));
}

// While it loads, others ask for the same: one read, and all who sleep are woken.
void test_single_flight(const Fixture& fixture) {
  Door door;
  Tamper tamper([&](uint64_t, uint64_t, uint8_t*, int64_t result) {
    door.pass();
    return result;
  });
  UnitCache cache(fixture.source(), fixture.options(4, &tamper));
  const UnitCache::Pin first = cache.acquire(9), second = cache.acquire(9);
  std::atomic<uint32_t> seen{0};
  std::vector<std::thread> waiting;
  for (int i = 0; i < 4; ++i) waiting.emplace_back([&, i] { seen += shows(i % 2 == 0 ? first : second, 9); });
  door.await_arrivals(1);
  while (cache.counters().late == 0) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(5));  // most of them sleep by now
  EXPECT(!first.ready() && seen == 0);
  door.open();
  for (std::thread& thread : waiting) thread.join();
  const sbr_cache_counters c = cache.counters();
  EXPECT(seen == 4 && c.loads == 1 && c.requests == 2 && c.hits == 0 && c.hits_on_the_way == 0 && c.late == 1);
}

void test_guesses(const Fixture& fixture) {
  UnitCache cache(fixture.source(), fixture.options(16));
  cache.guess(1);
  cache.guess(1);
  cache.guess(2);
  while (cache.counters().loads < 2) std::this_thread::yield();
  EXPECT(shows(cache.acquire(1), 1));
  cache.guess(1);  // is there
  sbr_cache_counters c = cache.counters();
  EXPECT(c.guesses == 2 && c.guesses_used == 1 && c.hits + c.hits_on_the_way == 1 && c.loads == 2);
  cache.drop_guesses();
  EXPECT(cache.has(2));  // it had been read: it stays until room is needed
  for (uint32_t unit = 6; unit < 6 + 15; ++unit) EXPECT(shows(cache.acquire(unit), unit));
  EXPECT(cache.has(1) && !cache.has(2));  // the wrong guess left first
  c = cache.counters();
  EXPECT(c.evictions == 1 && c.guesses_used == 1 && c.guesses_cancelled == 0);
}

// One read blocks the only thread: guesses behind it wait, may be acquired on their way (and then come before other
// guesses), and are cancelled when they turn out wrong.
void test_guesses_in_line(const Fixture& fixture) {
  if (fixture.kind != SBR_IO_PREAD) return;  // io_uring would have begun them all
  Door door;
  std::vector<uint64_t> order;
  Tamper tamper([&](uint64_t offset, uint64_t, uint8_t*, int64_t result) {
    order.push_back((offset - kHeader) / kUnitBytes);
    door.pass();
    return result;
  });
  UnitCache cache(fixture.source(), fixture.options(20, &tamper, 1));
  const UnitCache::Pin blocking = cache.acquire(0);
  door.await_arrivals(1);
  for (const uint32_t unit : {6u, 7u, 8u, 9u}) cache.guess(unit);
  const UnitCache::Pin demand = cache.acquire(10), guessed = cache.acquire(8);
  cache.drop_guesses();
  EXPECT(!cache.has(6) && !cache.has(7) && cache.has(8) && !cache.has(9));
  const UnitCache::Pin again = cache.acquire(6);  // its read was given up: a new one
  sbr_cache_counters c = cache.counters();
  EXPECT(c.guesses == 4 && c.guesses_cancelled == 3 && c.guesses_used == 1 && c.hits_on_the_way == 1);
  door.open();
  EXPECT(shows(blocking, 0) && shows(demand, 10) && shows(guessed, 8) && shows(again, 6));
  EXPECT((order == std::vector<uint64_t>{0, 10, 8, 6}));
}

// One guess turns out wrong, the others stand.
void test_one_wrong_guess(const Fixture& fixture) {
  UnitCache cache(fixture.source(), fixture.options(16));
  cache.guess(1);
  cache.guess(2);
  while (cache.counters().loads < 2) std::this_thread::yield();
  for (const uint32_t unit : {1u, 1u, 3u}) cache.drop_guess(unit);  // 3 was never one
  for (uint32_t unit = 6; unit < 6 + 15; ++unit) EXPECT(shows(cache.acquire(unit), unit));
  EXPECT(!cache.has(1) && shows(cache.acquire(2), 2));
  EXPECT(cache.counters().guesses_used == 1 && cache.counters().evictions == 1);
}

// Guesses take a quarter of the slots at most, and what is acquired does not wait for theirs where one can be
// cancelled.
void test_guesses_make_room(const Fixture& fixture) {
  UnitCache cache(fixture.source(), fixture.options(4));
  cache.guess(1);
  cache.guess(2);
  EXPECT(cache.has(1) && !cache.has(2));
  std::vector<UnitCache::Pin> pins;
  for (const uint32_t unit : {6u, 7u, 8u, 9u}) {
    pins.push_back(cache.acquire(unit));
    EXPECT(!!pins.back());
  }
  for (uint32_t i = 0; i < 4; ++i) EXPECT(shows(pins[i], 6 + i));
  UnitCache tiny(fixture.source(), fixture.options(1));
  tiny.guess(3);
  EXPECT(!tiny.has(3));
}

// ---- a random life --------------------------------------------------------------------------------

// Thread 0 acquires, guesses, drops and releases at random; all threads wait for the pins of a round and check them;
// some pins are kept for several rounds. Reads are late, short, interrupted, wrong or damaged.
void test_random_life(const Fixture& fixture, uint32_t policy, uint32_t capacity, bool faults, uint64_t seed) {
  std::atomic<uint64_t> reads{0};
  Tamper tamper([&](uint64_t, uint64_t length, uint8_t* to, int64_t result) -> int64_t {
    const uint64_t chance = sbr::random_u64(seed + 1, reads++);
    if (chance % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(chance / 8 % 300));
    if (!faults) return result;
    switch (chance / 4096 % 64) {
      case 0:
      case 1:
        return -EIO;
      case 2:
        to[chance / (1 << 20) % length] ^= 4;
        return result;
      case 3:
      case 4:
        return -EINTR;
      case 5:
      case 6:
      case 7:
        return length > 4096 ? 4096 : result;
      default:
        return result;
    }
  });
  CacheOptions options = fixture.options(capacity, &tamper);
  options.policy = policy;
  options.verify = SBR_VERIFY_EVERY;
  UnitCache cache(fixture.source(), options);
  constexpr uint32_t kThreads = 3;
  sbr::ThreadPool pool(kThreads, {});
  uint64_t count = 0;
  const auto below = [&](uint64_t limit) { return static_cast<uint32_t>(sbr::random_u64(seed, count++) % limit); };
  struct Held {
    uint32_t unit;
    UnitCache::Pin pin;
  };
  std::vector<Held> held;
  uint64_t asked = 0, failed = 0;
  std::atomic<uint64_t> wrong{0}, failures_seen{0};
  for (uint32_t round = 0; round < 200; ++round) {
    const uint32_t layer = round % kLayers;
    for (uint32_t i = below(4); i > 0; --i) cache.guess((layer + 1) % kLayers * kPerLayer + below(kPerLayer));
    for (uint32_t i = 1 + below(3); i > 0; --i) {
      const uint32_t unit = layer * kPerLayer + below(kPerLayer);
      UnitCache::Pin pin = cache.acquire(unit);
      if (!pin) {
        std::vector<uint32_t> units;  // an empty Pin: as many units as there are slots are pinned
        for (const Held& h : held) units.push_back(h.unit);
        std::sort(units.begin(), units.end());
        EXPECT(std::unique(units.begin(), units.end()) - units.begin() == capacity);
        continue;
      }
      ++asked;
      held.push_back({unit, std::move(pin)});
    }
    if (below(2) == 0) cache.drop_guesses();
    pool.run([&](uint32_t tid) {
      for (size_t i = 0; i < held.size(); ++i) {
        const Held& h = held[(i + tid) % held.size()];
        if (!h.pin.wait()) {
          ++failures_seen;
        } else if (!holds(h.pin.data(), Fixture::offset(h.unit), kUnitBytes)) {
          ++wrong;
        }
      }
    });
    EXPECT(cache.failure().empty() == (failures_seen == 0));
    failed += failures_seen.exchange(0);
    cache.clear_failure();
    for (size_t i = held.size(); i-- > 0;) {
      if (below(4) == 0 && held.size() <= capacity / 2) continue;
      std::swap(held[i], held.back());
      held.pop_back();
    }
  }
  const sbr_cache_counters c = cache.counters();
  EXPECT(wrong == 0 && (faults || failed == 0));
  EXPECT(c.requests == asked && c.hits + c.hits_on_the_way <= asked);
  EXPECT(c.guesses_used + c.guesses_cancelled <= c.guesses);
  EXPECT(c.bytes_read >= c.loads * kUnitBytes && c.verified <= c.loads);
  if (!faults && capacity == kUnits) EXPECT(c.loads <= kUnits && c.evictions == 0);
}

void test_two_caches(const Fixture& fixture) {
  UnitCache a(fixture.source(), fixture.options(2)), b(fixture.source(), fixture.options(3));
  for (uint32_t unit = 0; unit < kUnits; ++unit) {
    const UnitCache::Pin mine = a.acquire(unit), others = b.acquire(kUnits - 1 - unit);
    EXPECT(shows(mine, unit) && shows(others, kUnits - 1 - unit));
  }
}

}  // namespace

int main() {
  sbr_test::with_each_reader("test_cache", [](const Fixture& fixture) {
    test_options(fixture);
    test_counters(fixture);
    test_verify(fixture);
    test_all_pinned(fixture);
    test_single_flight(fixture);
    test_guesses(fixture);
    test_guesses_in_line(fixture);
    test_one_wrong_guess(fixture);
    test_guesses_make_room(fixture);
    test_two_caches(fixture);
    for (const uint32_t policy : {SBR_CACHE_LRU, SBR_CACHE_LFU, SBR_CACHE_REUSE}) {
      for (const uint32_t capacity : {1u, 2u, 5u, 12u, kUnits}) {
        for (const bool faults : {false, true}) test_random_life(fixture, policy, capacity, faults, policy + capacity);
      }
    }
  });
  return sbr_test::finish("test_cache");
}
