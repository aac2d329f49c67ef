#include "model/cached_experts.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "model/router.h"

namespace sbr {
namespace {

constexpr float kRemembered = 256;  // guesses of a place; then both numbers are halved

const BundlePart& part(const Bundle& bundle, uint32_t l, Matrix LayerWeights::* member) {
  for (const BundlePart& each : bundle.parts(l)) {
    if (each.member == member) return each;
  }
  throw Error(SBR_ERR_INTERNAL, bundle.path() + ": an expert of this bundle lacks a matrix");
}

}  // namespace

CachedExperts::CachedExperts(const Bundle& bundle, const Config& config, const CacheOptions& options, uint32_t depth,
                             bool careful)
    : units_per_layer_(bundle.units_per_layer()),
      n_layer_(config.n_layer),
      n_used_(config.n_expert_used),
      depth_(depth),
      careful_(careful),
      cache_(bundle, options) {
  for (uint32_t l = 0; l < config.n_layer; ++l) {
    const BundlePart& up = part(bundle, l, &LayerWeights::up);
    const uint64_t row = up.view.row_bytes;
    parts_.push_back({part(bundle, l, &LayerWeights::gate).offset, up.offset,
                      part(bundle, l, &LayerWeights::down).offset, row,
                      bundle.unit_bytes() % row == 0 && up.offset % row == 0});
  }
  pins_.resize(config.n_expert);
  rounds_.reserve(config.n_expert + 1);
  rounds_ = {0};
  away_.reserve(config.n_expert);
  likely_.resize(n_used_);
  if (depth_ == 0) return;
  records_.resize(size_t{depth_} * n_used_);
  layers_.resize(n_layer_);
  for (Layer& layer : layers_) {
    layer.named.resize(records_.size());
    layer.is.resize(depth_);
    layer.asked.reserve(records_.size());
  }
  guess_weights_.resize(n_used_);
}

void CachedExperts::request(uint32_t l, ExpertPlan* plan) {
  release();
  // After a call that ended within a token, guesses for its other layers are left.
  if (l != layer_ + 1) {
    for (uint32_t later = 0; later < layers_.size(); ++later) drop_guesses(later);
  }
  layer_ = l;
  plan->one_gather = parts_[l].one_gather;
  std::vector<ExpertGroup>& groups = plan->groups;
  if (depth_ != 0) judge_guesses(l, groups);
  if (careful_) measure(l, groups);

  // What is there is pinned first: loading the others might evict it.
  away_.clear();
  size_t there = 0;
  for (const ExpertGroup& group : groups) {
    if (cache_.has(unit(l, group.expert))) {
      groups[there++] = group;
    } else {
      away_.push_back(group);
    }
  }
  std::copy(away_.begin(), away_.end(), groups.begin() + static_cast<std::ptrdiff_t>(there));

  const size_t n = groups.size(), slots = cache_.capacity();
  in_waves_ = n > slots;
  rounds_.clear();
  if (in_waves_) {
    const size_t wave = std::max<size_t>(slots / 2, 1);
    for (size_t g = 0; g < n; g += wave) rounds_.push_back(static_cast<uint32_t>(g));
  } else {
    rounds_.push_back(0);
  }
  rounds_.push_back(static_cast<uint32_t>(n));
  if (in_waves_) {
    advance(0, plan);
  } else {
    while (pinned_ < n) pin(pinned_++, plan);
    // Of what was there something may have been on its way; those that can be computed at once come first.
    size_t ready = 0;
    for (size_t g = 0; g < there; ++g) {
      if (!pins_[g].ready()) continue;
      std::rotate(groups.begin() + ready, groups.begin() + g, groups.begin() + g + 1);
      std::rotate(pins_.begin() + ready, pins_.begin() + g, pins_.begin() + g + 1);
      ++ready;
    }
  }
  if (depth_ != 0) drop_guesses(l);  // those that came true have been acquired by now
}

void CachedExperts::settle(const ExpertPlan& plan) {
  // The other threads ask for depth() behind the barriers around this.
  resting_ = careful_ && worth_.resting();
  if (in_waves_) return;
  const size_t n = plan.groups.size();
  size_t there = 0;
  while (there < n && pins_[there].ready()) ++there;
  rounds_.clear();
  rounds_.push_back(0);
  if (there != 0 && there != n) rounds_.push_back(static_cast<uint32_t>(there));
  rounds_.push_back(static_cast<uint32_t>(n));
}

void CachedExperts::advance(size_t round, ExpertPlan* plan) {
  for (size_t g = 0; g < rounds_[round]; ++g) pins_[g] = UnitCache::Pin();
  while (pinned_ < rounds_[round + 1]) pin(pinned_++, plan);
  // The next one as far as slots go; one alone serves one wave after the other.
  if (cache_.capacity() == 1 || round + 1 == n_rounds()) return;
  while (pinned_ < rounds_[round + 2]) pin(pinned_++, plan);
}

void CachedExperts::pin(size_t g, ExpertPlan* plan) {
  ExpertGroup& group = plan->groups[g];
  UnitCache::Pin& pin = pins_[g];
  pin = cache_.acquire(unit(layer_, group.expert));  // never empty: fewer than capacity() are pinned
  const Parts& parts = parts_[layer_];
  const uint8_t* at = pin.data();
  group.gate = at + parts.gate;
  group.down = at + parts.down;
  group.rows_of_up = parts.one_gather ? cache_.arena() : at + parts.up;
  group.up_row = static_cast<uint32_t>(static_cast<uint64_t>(at + parts.up - group.rows_of_up) / parts.up_row_bytes);
}

void CachedExperts::release() {
  for (size_t g = 0; g < pinned_; ++g) pins_[g] = UnitCache::Pin();
  pinned_ = 0;
}

void CachedExperts::abandon() {
  for (size_t g = 0; g < pinned_; ++g) {
    if (pins_[g]) pins_[g].wait();
  }
  release();
}

void CachedExperts::guess(uint32_t l, const float* scores) {
  Layer& layer = layers_[l];
  top_k(scores, units_per_layer_, n_used_, likely_.data(), guess_weights_.data());
  std::sort(likely_.begin(), likely_.end(),
            [scores](uint32_t a, uint32_t b) { return scores[a] != scores[b] ? scores[a] > scores[b] : a < b; });
  size_t kept = 0;
  for (uint32_t expert : layer.asked) {
    if (std::find(likely_.begin(), likely_.end(), expert) != likely_.end()) {
      layer.asked[kept++] = expert;
    } else {
      cache_.drop_guess(unit(l, expert));
    }
  }
  layer.asked.resize(kept);
  const uint32_t distance = l - layer_ - 1;
  layer.is[distance] = 1;
  for (uint32_t place = 0; place < n_used_; ++place) {
    const uint32_t expert = likely_[place];
    const size_t at = size_t{distance} * n_used_ + place;
    layer.named[at] = {expert, !cache_.has(unit(l, expert))};
    if (!layer.named[at].missing || records_[at].right < worth_.least_right() * records_[at].all) continue;
    cache_.guess(unit(l, expert));
    if (cache_.has(unit(l, expert))) layer.asked.push_back(expert);
  }
}

void CachedExperts::count_wait(uint64_t ns) {
  ns_wait_ += ns;
  if (careful_) waited_until_ = Worker::now();
}

void CachedExperts::measure(uint32_t l, const std::vector<ExpertGroup>& groups) {
  const uint64_t waited_until = std::exchange(waited_until_, 0);
  if (groups.size() != n_used_) return;  // a batch
  worth_.add_layer(std::any_of(groups.begin(), groups.end(),
                               [&](const ExpertGroup& group) { return !cache_.has(unit(l, group.expert)); }));
  if (l == 0) {  // the pause before the first layer is the lm_head's, and nothing is guessed then
    const sbr_cache_counters counted = cache_.counters();
    if (counted.loads != 0) worth_.set_unit(static_cast<float>(counted.ns_io_busy) / static_cast<float>(counted.loads));
  } else if (waited_until != 0) {
    worth_.add_pause(static_cast<float>(Worker::now() - waited_until));
  }
}

// Whether what was named is now used.
void CachedExperts::judge_guesses(uint32_t l, const std::vector<ExpertGroup>& groups) {
  Layer& layer = layers_[l];
  bool nearest = true;
  for (uint32_t distance = 0; distance < depth_; ++distance) {
    if (layer.is[distance] == 0) continue;
    layer.is[distance] = 0;
    for (size_t at = size_t{distance} * n_used_, end = at + n_used_; at < end; ++at) {
      const Named& named = layer.named[at];
      const bool right = std::any_of(groups.begin(), groups.end(),
                                     [&named](const ExpertGroup& group) { return group.expert == named.expert; });
      predicted_ += nearest;
      predicted_right_ += nearest && right;
      if (!named.missing) continue;
      Record& record = records_[at];
      record.right += right;
      record.all += 1;
      if (record.all < kRemembered) continue;
      record.right /= 2;
      record.all /= 2;
    }
    nearest = false;
  }
}

void CachedExperts::drop_guesses(uint32_t l) {
  Layer& layer = layers_[l];
  for (uint32_t expert : layer.asked) cache_.drop_guess(unit(l, expert));
  layer.asked.clear();
  std::fill(layer.is.begin(), layer.is.end(), uint8_t{0});
}

bool CachedExperts::wait(size_t group, uint64_t* waited_ns) const {
  const UnitCache::Pin& pin = pins_[group];
  if (pin.ready()) return pin.wait();
  const uint64_t begin = Worker::now();
  const bool there = pin.wait();
  *waited_ns += Worker::now() - begin;
  return there;
}

sbr_cache_counters CachedExperts::counters() const {
  sbr_cache_counters counters = cache_.counters();
  counters.predicted = predicted_;
  counters.predicted_right = predicted_right_;
  counters.ns_wait = ns_wait_;
  return counters;
}

void CachedExperts::reset_counters() {
  cache_.reset_counters();
  predicted_ = predicted_right_ = ns_wait_ = 0;
}

}  // namespace sbr
