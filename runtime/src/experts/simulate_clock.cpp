// One device and one session, in nanoseconds since its first token. docs/simulate.md has the model in words.
//
// The device serves reads at ns_unit each, one after the other, and the first after a pause takes ns_latency more. Of
// what a layer asks for, units_at_once are served together: their pieces are all under way, so that they arrive
// together, at the time at which the last of them would.
//
// Guesses take a slot when they are named and are read while nothing else is; one that has begun delays what is then
// asked for. A name is right by a draw of its own (one for each token, layer and place), whatever the distance. A wrong
// one is an expert that some other token used in that layer, so that popular experts are named as often as they are
// used.
#include "experts/simulate_clock.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <utility>
#include <vector>

#include "base/error.h"
#include "synth/random.h"

namespace sbr {
namespace {

constexpr uint64_t kSeed = 1;
constexpr double kNever = 1e300;
// As the cache has it: of its slots, what guesses may take.
constexpr uint32_t kGuessShare = 4;

class Clock {
 public:
  Clock(const Trace& trace, const sbr_simulate_clock& clock, EvictionPolicy& policy, uint32_t capacity)
      : trace_(trace),
        clock_(clock),
        policy_(policy),
        free_(capacity),
        most_open_(capacity / kGuessShare),
        state_(trace.units(), kAbsent),
        held_(trace.units(), 0),
        arrives_(trace.units(), 0) {}

  void count(bool counts) { counts_ = counts; }

  // A token's layers, and its lm_head.
  template <typename Missed>
  void decode(uint64_t token, Missed missed) {
    const double begin = now_;
    for (uint32_t layer = 0; layer < trace_.n_layer; ++layer) missed(compute(token, layer));
    now_ += clock_.ns_head;
    // No layer awaits a guess now, but reads that are under way go on.
    if (counts_) decode_ns_ += now_ - begin;
  }

  void finish(sbr_simulate_result* result) const {
    result->hits_on_the_way = on_the_way_;
    result->loads = loads_;
    result->guesses = guesses_;
    result->guesses_used = guesses_used_;
    result->ns_decode = static_cast<uint64_t>(std::llround(decode_ns_));
    result->ns_io_busy = static_cast<uint64_t>(std::llround(busy_ns_));
  }

 private:
  // kDropped: a guess that its layer did not ask for; the first to leave.
  enum State : uint8_t { kAbsent, kThere, kGuessed, kDropped };

  uint32_t unit(uint64_t token, uint32_t layer, uint32_t k) const {
    return layer * trace_.n_expert + trace_.experts[(token * trace_.n_layer + layer) * trace_.per_set + k];
  }

  // Reads that the device begins before `until`, of guesses.
  void read_guesses(double until) {
    while (!waiting_.empty() && std::max(device_, waiting_.front().second) < until) {
      const auto [guess, asked] = waiting_.front();
      waiting_.pop_front();
      arrives_[guess] = read(asked, 1);
    }
  }

  // Until the last of n units has arrived that are asked for now, when the device has served what it has.
  double read(double now, uint32_t n) {
    const bool idle = device_ <= now;
    const double ns = (idle ? clock_.ns_latency : 0) + n * clock_.ns_unit;
    device_ = std::max(device_, now) + ns;
    if (counts_) {
      busy_ns_ += ns;
      loads_ += n;
    }
    return device_;
  }

  // Units of the layer that were not there.
  uint32_t compute(uint64_t token, uint32_t layer) {
    const uint32_t ahead = std::min(clock_.guess_layers, trace_.n_layer - 1 - layer);
    const double asked = now_ + clock_.ns_lead;
    read_guesses(asked);
    arrivals_.clear();
    missing_.clear();
    uint32_t there = 0;
    for (uint32_t k = 0; k < trace_.per_set; ++k) {
      const uint32_t wanted = unit(token, layer, k);
      if (state_[wanted] == kGuessed && forget_waiting(wanted)) vacate(wanted);  // a miss like any other
      if (state_[wanted] == kAbsent) {
        missing_.push_back(wanted);
        continue;
      }
      if (state_[wanted] != kThere && counts_) ++guesses_used_;
      use(wanted);
      if (arrives_[wanted] <= asked) {
        ++there;
      } else {
        arrivals_.emplace_back(arrives_[wanted], 1);
        if (counts_) ++on_the_way_;
      }
    }
    const uint32_t guessed = static_cast<uint32_t>(arrivals_.size());
    for (const uint32_t wanted : missing_) {
      make_room();
      use(wanted);
    }
    for (size_t i = 0; i < missing_.size(); i += clock_.units_at_once) {
      const auto n = static_cast<uint32_t>(std::min<size_t>(clock_.units_at_once, missing_.size() - i));
      const double arrived = read(asked, n);
      for (size_t j = i; j < i + n; ++j) arrives_[missing_[j]] = arrived;
      arrivals_.emplace_back(arrived, n);
    }
    drop_guesses(layer);
    for (uint32_t i = 1; i <= ahead; ++i) guess(token, layer + i, asked);
    for (uint32_t k = 0; k < trace_.per_set; ++k) held_[unit(token, layer, k)] = 0;

    double done = asked + clock_.ns_rest + ahead * clock_.ns_router + there * clock_.ns_expert;
    std::sort(arrivals_.begin(), arrivals_.end());
    for (const auto& [arrived, n] : arrivals_) done = std::max(done, arrived) + n * clock_.ns_expert;
    now_ = done;
    return static_cast<uint32_t>(missing_.size()) + guessed;
  }

  void use(uint32_t wanted) {
    if (state_[wanted] == kGuessed) --open_;
    forget_guess(wanted);
    state_[wanted] = kThere;
    held_[wanted] = 1;
    policy_.used(wanted);
  }

  // Likely experts of a later layer, asked for at `asked`.
  void guess(uint64_t token, uint32_t layer, double asked) {
    for (uint32_t k = 0; k < trace_.per_set; ++k) {
      const uint64_t draw = (token * trace_.n_layer + layer) * trace_.per_set + k;
      uint64_t of = token;
      if (static_cast<double>(random_u64(kSeed, 2 * draw) >> 11) * 0x1p-53 >= clock_.guess_right) {
        of = random_u64(kSeed, 2 * draw + 1) % trace_.n_tokens;
      }
      const uint32_t named = unit(of, layer, k);
      if (state_[named] == kDropped) {
        state_[named] = kGuessed;
        ++open_;
      }
      if (state_[named] != kAbsent || open_ >= most_open_) continue;
      if (free_ == 0 && !evict_dropped() && !evict(/*guess=*/true)) continue;
      --free_;
      state_[named] = kGuessed;
      held_[named] = 1;
      arrives_[named] = kNever;
      waiting_.emplace_back(named, asked);
      named_.push_back(named);
      ++open_;
      if (counts_) ++guesses_;
    }
  }

  // What this layer was thought to need and does not: not read if it has not begun.
  void drop_guesses(uint32_t layer) {
    for (size_t i = named_.size(); i-- > 0;) {
      const uint32_t named = named_[i];
      if (named / trace_.n_expert != layer || state_[named] != kGuessed) continue;
      --open_;
      if (forget_waiting(named)) {
        forget_guess(named);
        vacate_slot(named);
      } else {
        state_[named] = kDropped;
      }
    }
  }

  // Of a guess.
  void vacate(uint32_t wanted) {
    if (state_[wanted] == kGuessed) --open_;
    forget_guess(wanted);
    vacate_slot(wanted);
  }

  void vacate_slot(uint32_t at) {
    state_[at] = kAbsent;
    held_[at] = 0;
    ++free_;
  }

  bool forget_waiting(uint32_t wanted) {
    const auto at =
        std::find_if(waiting_.begin(), waiting_.end(), [&](const auto& each) { return each.first == wanted; });
    if (at == waiting_.end()) return false;
    waiting_.erase(at);
    return true;
  }

  void forget_guess(uint32_t wanted) {
    const auto at = std::find(named_.begin(), named_.end(), wanted);
    if (at != named_.end()) named_.erase(at);
  }

  bool evict_dropped() {
    for (const uint32_t named : named_) {
      if (state_[named] != kDropped) continue;
      forget_guess(named);
      vacate_slot(named);
      return true;
    }
    return false;
  }

  // One that the policy gives up.
  bool evict(bool guess) {
    const uint32_t victim = policy_.evict(held_.data());
    if (victim != kNoUnit) {
      vacate_slot(victim);
      return true;
    }
    // What is needed now goes before what may be needed: the oldest guess leaves for it.
    if (guess || named_.empty()) return false;
    const uint32_t named = named_.front();
    forget_waiting(named);
    vacate(named);
    return true;
  }

  void make_room() {
    if (free_ == 0 && !evict_dropped() && !evict(/*guess=*/false)) {
      // The set is larger than the cache: what it holds is computed and released first.
      std::fill(held_.begin(), held_.end(), uint8_t{0});
      if (!evict(false)) throw Error(SBR_ERR_INTERNAL, "The policy evicts nothing although nothing is pinned");
    }
    --free_;
  }

  const Trace& trace_;
  const sbr_simulate_clock& clock_;
  EvictionPolicy& policy_;
  uint32_t free_;  // slots
  const uint32_t most_open_;
  std::vector<uint8_t> state_, held_;                  // [units]
  std::vector<double> arrives_;                        // [units] in nanoseconds
  std::deque<std::pair<uint32_t, double>> waiting_;    // guesses that are not read yet: units, and when asked for
  std::vector<uint32_t> named_;                        // guesses that nobody has asked for, the oldest first
  std::vector<uint32_t> missing_;                      // of a set
  std::vector<std::pair<double, uint32_t>> arrivals_;  // of a set: when, how many
  uint32_t open_ = 0;                                  // guesses that may still come true
  double now_ = 0, device_ = 0;                        // the session's clock; when the device is free
  bool counts_ = false;
  uint64_t on_the_way_ = 0, loads_ = 0, guesses_ = 0, guesses_used_ = 0;
  double decode_ns_ = 0, busy_ns_ = 0;
};

}  // namespace

sbr_simulate_result simulate_clock(const Trace& trace, const sbr_simulate_options& options,
                                   const sbr_simulate_clock& clock, EvictionPolicy& policy) {
  Clock session(trace, clock, policy, std::min(options.capacity, trace.units()));
  std::vector<uint64_t> sets(trace.per_set + 1, 0);
  sbr_simulate_result result = {};
  for (uint64_t token = 0; token < trace.n_tokens; ++token) {
    const bool counts = token >= options.warmup_tokens;
    session.count(counts);
    session.decode(token, [&](uint32_t missed) { sets[missed] += counts; });
  }
  for (uint32_t n = 0; n <= trace.per_set; ++n) {
    result.requests += sets[n] * trace.per_set;
    result.hits += sets[n] * (trace.per_set - n);
    if (options.sets_by_misses != nullptr) options.sets_by_misses[n] = sets[n];
  }
  session.finish(&result);
  return result;
}

}  // namespace sbr
