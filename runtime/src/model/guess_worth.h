// Whether guessing at experts pays, by what was measured so far (SBR_PREFETCH_AUTO).
//
// A guess is read in the device's pause between two layers. If it is right, what is needed comes earlier by that pause;
// if it is wrong, it comes later by what is left of the read. So right ones have to be at least 1 - pause / read.
#pragma once

#include <algorithm>

namespace sbr {

class GuessWorth {
 public:
  // A layer of a single token, and whether it missed an expert.
  void add_layer(bool missing) { missing_ += (static_cast<float>(missing) - missing_) / kRemembered; }

  // From a layer's last wait to the next layer's request. One far longer than usual is a thread that had to leave its
  // CPU and counts as kLongest usual ones: it says nothing of the device, and some such would let every guess pass.
  void add_pause(float ns) {
    pause_ns_ = pause_ns_ == 0 ? ns : pause_ns_ + (std::min(ns, kLongest * pause_ns_) - pause_ns_) / kRemembered;
  }

  // The device's time for a unit.
  void set_unit(float ns) { unit_ns_ = ns; }

  // An expert is asked for early if this share of the missing ones that stood at its place and distance was used.
  float least_right() const {
    return pause_ns_ > 0 && unit_ns_ > 0 ? std::max(1 - pause_ns_ / unit_ns_, kLeastRight) : kLeastRight;
  }

  // Whether so few layers miss anything that naming experts costs more than it can save.
  bool resting() const { return missing_ < kLeastMissing; }

 private:
  // Of SmallThinker-4B's 4 places (synthetic weights, 737 units) 1.00, 0.96, 0.73 and 0.48 were right one layer ahead,
  // 0.79, 0.84, 0.70 and 0.47 two, 1.00, 0.75, 0.55 and 0.35 four ahead: a wrong one costs a read of an idle device,
  // and an urgent read at most one unit's time; a right one saves just that.
  static constexpr float kLeastRight = 0.5f;
  // Naming costs a layer two routers (14 us of SmallThinker-4B's 300), and a right guess can save no more than the
  // device's pause between two layers (some 300 us).
  static constexpr float kLeastMissing = 1.0f / 16;
  static constexpr float kRemembered = 256;  // layers in an average, about
  static constexpr float kLongest = 4;

  float missing_ = 1;   // share of layers that missed an expert
  float pause_ns_ = 0;  // 0: not known
  float unit_ns_ = 0;   // 0: not known
};

}  // namespace sbr
