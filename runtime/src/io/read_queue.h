// What both readers have in common: requests wait here, are cut into pieces for the kernel, the urgent ones first, and
// are done when their last piece is. Not for several threads at once: each reader has a lock around it.
#pragma once

#include <chrono>
#include <cstdint>
#include <list>

#include "io/reader.h"

namespace sbr {

// What one read of the kernel brings at most. A 1.99 MB unit of SmallThinker-4B becomes 4 of them, so that a single
// unit already keeps the disk busy.
constexpr uint64_t kPieceBytes = 512 << 10;

// Idle reads are handed out as long as fewer pieces than that are under way: about one unit, which already takes all
// that a disk has (a lone unit of 1.99 MB came in 0.70 ms, at 2.8 GB/s, the rate of three at once), and all that an
// urgent read has to wait for.
constexpr uint32_t kIdlePieces = 4;

class ReadQueue {
 public:
  struct Request {
    ReadRequest read;
    uint64_t handed_out;  // bytes
    uint32_t under_way;   // pieces
    int error;            // the first
  };
  struct Piece {
    Request* request;
    uint64_t offset, length;  // in the file, what is left of it
    uint8_t* to;
    uint32_t attempts;  // in a row that brought nothing
  };
  struct Finished {
    uint64_t tag;
    int error;
  };
  enum class Outcome { kReadOn, kPieceDone, kRequestDone };

  void add(const ReadRequest& request);
  bool cancel(uint64_t tag);
  void promote(uint64_t tag);

  // Hands out the next piece; false: there is none.
  bool next(Piece* piece);
  // The kernel's answer to a piece: bytes, or a negative errno. kReadOn: the piece now says what is left to be read,
  // again or for the first time. kRequestDone: so is its request, and *finished says how. `direct`: with O_DIRECT.
  Outcome answered(Piece* piece, int64_t result, bool direct, Finished* finished);

  ReaderCounters counters() const;

 private:
  using Clock = std::chrono::steady_clock;
  using Requests = std::list<Request>;  // moves between lists without allocating, and pieces may point to one

  void all_handed_out(Request* request);

  Requests waiting_;  // with something to hand out
  Requests urgent_;   // the same, and first
  Requests idle_;     // the same, and last
  Requests begun_;    // with all handed out
  uint64_t under_way_ = 0;
  Clock::time_point busy_since_;
  ReaderCounters counters_;
};

}  // namespace sbr
