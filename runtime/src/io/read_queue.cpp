#include "io/read_queue.h"

#include <algorithm>
#include <cerrno>

namespace sbr {
namespace {

// Attempts of one piece in a row that bring nothing and blame nobody. A signal or a refused moment passes sooner.
constexpr uint32_t kAttempts = 100;

// ECANCELED: a kernel may cancel what a thread gave to io_uring when that thread ends.
bool worth_another(int64_t result) { return result == -EINTR || result == -EAGAIN || result == -ECANCELED; }

template <typename List>
auto find(List& list, uint64_t tag) {
  return std::find_if(list.begin(), list.end(), [tag](const auto& request) { return request.read.tag == tag; });
}

}  // namespace

void ReadQueue::add(const ReadRequest& request) {
  Requests& list = request.urgent ? urgent_ : request.idle ? idle_ : waiting_;
  list.push_back({request, 0, 0, 0});
}

bool ReadQueue::cancel(uint64_t tag) {
  for (Requests* list : {&idle_, &waiting_, &urgent_}) {
    const auto at = find(*list, tag);
    if (at == list->end()) continue;
    if (at->handed_out != 0) return false;
    list->erase(at);
    return true;
  }
  return false;
}

void ReadQueue::promote(uint64_t tag) {
  for (Requests* list : {&idle_, &waiting_}) {
    const auto at = find(*list, tag);
    if (at != list->end()) return urgent_.splice(urgent_.end(), *list, at);
  }
}

void ReadQueue::all_handed_out(Request* request) {
  for (Requests* list : {&urgent_, &waiting_, &idle_}) {
    const auto at = std::find_if(list->begin(), list->end(), [request](const Request& r) { return &r == request; });
    if (at != list->end()) begun_.splice(begun_.end(), *list, at);
  }
}

bool ReadQueue::next(Piece* piece) {
  Requests& from = !urgent_.empty() ? urgent_ : !waiting_.empty() ? waiting_ : idle_;
  if (from.empty() || (&from == &idle_ && under_way_ >= kIdlePieces)) return false;
  Request& request = from.front();
  const ReadRequest& read = request.read;
  const uint64_t length = std::min(kPieceBytes, read.length - request.handed_out);
  *piece = {&request, read.offset + request.handed_out, length, read.to + request.handed_out, 0};
  request.handed_out += length;
  ++request.under_way;
  if (request.handed_out == read.length) begun_.splice(begun_.end(), from, from.begin());
  if (under_way_++ == 0) busy_since_ = Clock::now();
  return true;
}

ReadQueue::Outcome ReadQueue::answered(Piece* piece, int64_t result, bool direct, Finished* finished) {
  Request& request = *piece->request;
  ++counters_.reads;
  int error = 0;
  if (result > 0) {
    const uint64_t bytes = std::min(static_cast<uint64_t>(result), piece->length);
    counters_.bytes += bytes;
    piece->offset += bytes;
    piece->length -= bytes;
    piece->to += bytes;
    piece->attempts = 0;
    // Only the end of the file cuts a direct read off within a sector.
    if (direct && bytes % kReadAlignment != 0 && piece->length != 0) error = EIO;
  } else if (result == 0) {
    error = EIO;
  } else if (!worth_another(result) || ++piece->attempts == kAttempts) {
    error = static_cast<int>(-result);
  }
  if (error == 0 && piece->length != 0) return Outcome::kReadOn;

  if (--under_way_ == 0) {
    counters_.ns_busy +=
        static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - busy_since_).count());
  }
  --request.under_way;
  if (error != 0 && request.error == 0) {
    request.error = error;
    if (request.handed_out != request.read.length) {
      request.handed_out = request.read.length;  // the rest of it would be read for nothing
      all_handed_out(&request);
    }
  }
  if (request.under_way != 0 || request.handed_out != request.read.length) return Outcome::kPieceDone;
  *finished = {request.read.tag, request.error};
  begun_.erase(std::find_if(begun_.begin(), begun_.end(), [&](const Request& r) { return &r == &request; }));
  return Outcome::kRequestDone;
}

ReaderCounters ReadQueue::counters() const {
  ReaderCounters counters = counters_;
  if (under_way_ != 0) {
    counters.ns_busy +=
        static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - busy_since_).count());
  }
  return counters;
}

}  // namespace sbr
