// Layers that pass through a few buffers: the same bits as with all weights in memory, for every budget, thread count
// and batch size; and what happens when storage fails, is slow, or changed.
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <iterator>
#include <thread>
#include <utility>

#include "base/error.h"
#include "expect.h"
#include "experts/bundle.h"
#include "experts/layer_stream.h"
#include "tiny_models.h"

using namespace sbr_test;

namespace {

// What pread does in this program.
struct Storage {
  std::atomic<uint32_t> delay_us{0};
  std::atomic<uint64_t> bad_begin{0}, bad_end{0};  // reads that touch these bytes fail
  std::atomic<uint32_t> good_reads{0};             // before anything fails
} storage;

ssize_t read_at(int fd, void* to, size_t n, off_t at) {
  if (const uint32_t us = storage.delay_us) std::this_thread::sleep_for(std::chrono::microseconds(us));
  const auto begin = static_cast<uint64_t>(at);
  if (begin < storage.bad_end && begin + n > storage.bad_begin) {
    if (storage.good_reads == 0) {
      errno = EIO;
      return -1;
    }
    --storage.good_reads;
  }
  return syscall(SYS_pread64, fd, to, n, at);
}

}  // namespace

extern "C" ssize_t pread(int fd, void* to, size_t n, off_t at) { return read_at(fd, to, n, at); }
#if defined(__GLIBC__)  // elsewhere they are one
extern "C" ssize_t pread64(int fd, void* to, size_t n, off_t at) { return read_at(fd, to, n, at); }
#endif

namespace {

constexpr uint32_t kLayers = 5;

// A model, the same one with its layers in a bundle, and the logits that both must give.
class Fixture {
 public:
  explicit Fixture(const char* architecture = "qwen3", uint32_t type = SBR_TYPE_Q4_0)
      : whole_(spec(architecture, type)), path_(whole_.path() + ".bundle"), tokens_(token_stream(24)) {
    sbr_error error = {};
    error.struct_size = sizeof error;
    EXPECT(sbr_bundle_write(whole_.path().c_str(), "digest", 0, path_.c_str(), nullptr, nullptr, &error) == SBR_OK);
    sbr_model_options options = {};
    options.struct_size = sizeof options;
    options.load_mode = SBR_LOAD_REPACK;
    options.bundle = path_.c_str();
    options.digest = "digest";
    model_ = std::make_unique<sbr::Model>(whole_.path(), options);
    unit_ = sbr::Bundle::open(path_).unit_bytes();
    sbr_session_options resident = session_options();
    resident.isa = SBR_ISA_AUTO;
    expected_ = prefill_all(whole_.get(), resident, tokens_);
  }
  ~Fixture() { std::remove(path_.c_str()); }

  static sbr_synth_spec spec(const char* architecture, uint32_t type) {
    sbr_synth_spec spec = tiny_spec(architecture, type);
    spec.n_layer = kLayers;
    return spec;
  }

  // With memory for `layers` of them.
  sbr_session_options options(uint64_t layers, uint32_t threads = 2, uint32_t batch = 8) const {
    sbr_session_options o = session_options();
    o.isa = SBR_ISA_AUTO;
    o.n_threads = threads;
    o.n_batch = batch;
    o.cache_bytes = layers * unit_;
    o.io = SBR_IO_PREAD;
    return o;
  }

  const sbr::Model& model() const { return *model_; }
  const std::string& path() const { return path_; }
  uint64_t unit() const { return unit_; }
  uint64_t offset(uint32_t layer) const { return sbr::Bundle::open(path_).offset(layer); }
  const std::vector<int32_t>& tokens() const { return tokens_; }
  const std::vector<float>& expected() const { return expected_; }

  bool right(const std::vector<float>& logits, size_t first = 0) const {
    return same_bits(logits, {expected_.begin() + static_cast<std::ptrdiff_t>(first * kVocab), expected_.end()});
  }

  std::string bytes() const {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  // In place: readers have the file open.
  void overwrite(const std::string& content) const {
    std::fstream out(path_, std::ios::binary | std::ios::in | std::ios::out);
    out.write(content.data(), static_cast<std::streamsize>(content.size()));
    out.flush();
    EXPECT(out.good() && truncate(path_.c_str(), static_cast<off_t>(content.size())) == 0);
  }

 private:
  TinyModel whole_;
  std::string path_;
  std::vector<int32_t> tokens_;
  std::unique_ptr<sbr::Model> model_;
  uint64_t unit_ = 0;
  std::vector<float> expected_;
};

// Of all tokens, by prefill; the session ends where it began.
std::vector<float> prefill(sbr::Session& session, const std::vector<int32_t>& tokens) {
  std::vector<float> logits(tokens.size() * kVocab);
  session.rewind(0);
  session.prefill(tokens.data(), static_cast<uint32_t>(tokens.size()), SBR_LOGITS_ALL, logits.data(), nullptr);
  return logits;
}

// The status of a prefill that fails; its sentence must name what `says` says.
int32_t failing_prefill(sbr::Session& session, const std::vector<int32_t>& tokens, const std::string& says = "") {
  const uint32_t before = session.info().n_past;
  try {
    session.prefill(tokens.data(), static_cast<uint32_t>(tokens.size()), SBR_LOGITS_NONE, nullptr, nullptr);
  } catch (const sbr::Error& error) {
    EXPECT(session.info().n_past == before);
    if (!EXPECT(std::string(error.what()).find(says) != std::string::npos))
      std::fprintf(stderr, "  says: %s\n", error.what());
    return error.status();
  }
  session.rewind(before);
  return SBR_OK;
}

bool can_use_io_uring(const Fixture& fixture) {
  sbr_session_options options = fixture.options(2);
  options.io = SBR_IO_URING;
  try {
    return sbr::Session(fixture.model(), options).info().io == SBR_IO_URING;
  } catch (const sbr::Error& error) {
    std::printf("test_stream: without io_uring: %s\n", error.what());
    return false;
  }
}

void test_equalities() {
  const std::pair<const char*, uint32_t> models[] = {
      {"qwen3", SBR_TYPE_Q4_0}, {"qwen3", SBR_TYPE_Q8_0}, {"llama", SBR_TYPE_Q4_0}, {"llama", SBR_TYPE_F16}};
  for (const auto& [architecture, type] : models) {
    const Fixture fixture(architecture, type);
    const bool uring = can_use_io_uring(fixture);
    for (uint32_t layers = 1; layers <= kLayers; ++layers) {
      for (uint32_t threads = 1; threads <= 3; ++threads) {
        sbr_session_options options = fixture.options(layers, threads, threads == 1 ? 1 : threads == 2 ? 8 : 64);
        options.cache_bytes += layers * 1000;  // not enough for one more
        options.io = uring && (layers + threads) % 2 == 0 ? SBR_IO_URING : SBR_IO_PREAD;
        options.io_direct = threads == 3 ? SBR_DIRECT_OFF : SBR_DIRECT_AUTO;
        options.verify = threads == 1 ? SBR_VERIFY_EVERY : SBR_VERIFY_FIRST;
        sbr::Session session(fixture.model(), options);
        EXPECT(session.info().cache_units == layers && session.info().cache_bytes_min == fixture.unit());
        EXPECT(fixture.right(prefill(session, fixture.tokens())));
        session.rewind(0);
        EXPECT(fixture.right(decode_all(session, fixture.tokens())));
        session.rewind(11);
        EXPECT(fixture.right(decode_all(session, {fixture.tokens().begin() + 11, fixture.tokens().end()}), 11));
      }
    }
  }
}

void test_too_small() {
  const Fixture fixture;
  sbr_session_options options = fixture.options(1);
  for (uint64_t bytes : {uint64_t{0}, fixture.unit() - 1}) {
    options.cache_bytes = bytes;
    int32_t status = SBR_OK;
    try {
      const sbr::Session session(fixture.model(), options);
    } catch (const sbr::Error& error) {
      status = error.status();
      EXPECT(std::string(error.what()).find(std::to_string(fixture.unit())) != std::string::npos);
    }
    EXPECT(status == SBR_ERR_ARGUMENT);
  }
}

// Each streamed layer is read once for a token or a batch, those that stay never again.
void test_counters() {
  const Fixture fixture;
  const uint32_t n = static_cast<uint32_t>(fixture.tokens().size());
  for (uint32_t layers = 1; layers <= kLayers; ++layers) {
    const uint64_t streamed = sbr::make_layer_schedule(kLayers, layers).streamed.size();
    sbr::Session session(fixture.model(), fixture.options(layers));
    prefill(session, fixture.tokens());
    EXPECT(session.cache_counters().verified == kLayers);
    session.rewind(0);
    for (bool batches : {false, true}) {
      session.reset_counters();
      if (batches) {
        prefill(session, fixture.tokens());
      } else {
        decode_all(session, fixture.tokens());
      }
      const uint64_t steps = batches ? n / 8 : n, few = std::min<uint64_t>(streamed, 2);
      const sbr_cache_counters c = session.cache_counters();
      EXPECT(c.requests == steps * kLayers && c.hits + c.late == c.requests);
      EXPECT(c.hits >= steps * (kLayers - streamed));
      EXPECT(c.evictions == steps * streamed);
      // Give or take the buffers, which are read ahead of their use.
      EXPECT(c.loads + few >= steps * streamed && c.loads <= steps * streamed + few);
      EXPECT(c.bytes_read + few * fixture.unit() >= steps * streamed * fixture.unit() &&
             c.bytes_read <= (steps * streamed + few) * fixture.unit());
      EXPECT((c.ns_io_busy > 0) == (streamed > 0) && (c.late > 0 || c.ns_wait == 0));
      EXPECT(c.verified == 0);
      session.rewind(0);
    }
  }
}

void test_sessions_at_once() {
  const Fixture fixture;
  std::vector<float> logits[3];
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < 3; ++i) {
    threads.emplace_back([&, i] {
      sbr::Session session(fixture.model(), fixture.options(i + 1, i + 1, 3));
      logits[i] = prefill(session, fixture.tokens());
      session.rewind(0);
      if (!same_bits(decode_all(session, fixture.tokens()), logits[i])) logits[i].clear();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<float>& of : logits) EXPECT(fixture.right(of));
}

// A failed read ends the call at the old position, whichever layer it is; when storage works again, so does the
// session.
void test_read_errors() {
  const Fixture fixture;
  for (uint32_t layers : {1u, 3u, kLayers}) {
    for (uint32_t threads : {1u, 3u}) {
      for (uint32_t bad = 0; bad < kLayers; ++bad) {
        storage.bad_begin = fixture.offset(bad) + 8192;  // Reader::open tries one before
        storage.bad_end = fixture.offset(bad) + fixture.unit();
        sbr::Session session(fixture.model(), fixture.options(layers, threads));
        for (int again = 0; again < 2; ++again)
          EXPECT(failing_prefill(session, fixture.tokens(), "layer " + std::to_string(bad)) == SBR_ERR_IO);
        storage.bad_end = 0;
        EXPECT(fixture.right(prefill(session, fixture.tokens())));

        // In the middle of decoding, after some good reads.
        session.rewind(7);
        storage.good_reads = 1;
        storage.bad_end = fixture.offset(bad) + fixture.unit();
        const std::vector<int32_t> rest(fixture.tokens().begin() + 7, fixture.tokens().end());
        const std::vector<uint32_t>& streamed = sbr::make_layer_schedule(kLayers, layers).streamed;
        const bool is_streamed = std::find(streamed.begin(), streamed.end(), bad) != streamed.end();
        EXPECT(failing_prefill(session, rest) == (is_streamed ? SBR_ERR_IO : SBR_OK));
        storage.bad_end = 0;
        storage.good_reads = 0;
        EXPECT(fixture.right(decode_all(session, rest), 7));
      }
    }
  }
}

// A file that lost its end, with either reader.
void test_truncated() {
  const Fixture fixture;
  const std::string content = fixture.bytes();
  for (uint32_t io : {SBR_IO_PREAD, SBR_IO_URING}) {
    if (io == SBR_IO_URING && !can_use_io_uring(fixture)) continue;
    sbr_session_options options = fixture.options(2);
    options.io = io;
    sbr::Session session(fixture.model(), options);
    EXPECT(fixture.right(prefill(session, fixture.tokens())));
    EXPECT(truncate(fixture.path().c_str(), static_cast<off_t>(fixture.offset(kLayers - 1) + 4096)) == 0);
    session.rewind(0);
    EXPECT(failing_prefill(session, fixture.tokens(), fixture.path()) == SBR_ERR_IO);
    fixture.overwrite(content);
    EXPECT(fixture.right(prefill(session, fixture.tokens())));
  }
}

void test_flipped_byte() {
  const Fixture fixture;
  const std::string content = fixture.bytes();
  for (uint32_t layers : {1u, 3u, kLayers}) {
    for (uint32_t bad = 0; bad < kLayers; ++bad) {
      std::string flipped = content;
      flipped[fixture.offset(bad) + 100] = static_cast<char>(flipped[fixture.offset(bad) + 100] ^ 1);
      fixture.overwrite(flipped);
      sbr_session_options options = fixture.options(layers, 1 + bad % 3);
      sbr::Session session(fixture.model(), options);
      EXPECT(failing_prefill(session, fixture.tokens(), "layer " + std::to_string(bad)) == SBR_ERR_FORMAT);
      fixture.overwrite(content);
      EXPECT(fixture.right(prefill(session, fixture.tokens())));
    }
  }
  // After the first read only SBR_VERIFY_EVERY looks again.
  sbr_session_options options = fixture.options(1);
  options.verify = SBR_VERIFY_EVERY;
  sbr::Session session(fixture.model(), options);
  EXPECT(fixture.right(prefill(session, fixture.tokens())));
  std::string flipped = content;
  flipped[fixture.offset(3) + 5] = static_cast<char>(flipped[fixture.offset(3) + 5] ^ 0x80);
  fixture.overwrite(flipped);
  session.rewind(0);
  EXPECT(failing_prefill(session, fixture.tokens(), "layer 3") == SBR_ERR_FORMAT);
  options.verify = SBR_VERIFY_NEVER;
  sbr::Session trusting(fixture.model(), options);
  EXPECT(failing_prefill(trusting, fixture.tokens()) == SBR_OK && trusting.cache_counters().verified == 0);
  fixture.overwrite(content);
}

// Slow now and then, short often, and failing sometimes: by chance, but always the same chances.
class Erratic : public sbr::ReadTamper {
 public:
  explicit Erratic(uint32_t failures) : failures_(failures) {}
  int64_t answer(uint64_t offset, uint64_t length, uint8_t*, int64_t result) override {
    const uint32_t chance = (count_.fetch_add(1) * 2654435761u) >> 16;
    if (chance % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(chance % 700));
    if (chance % 1000 < failures_) return -EIO;
    if (chance % 3 == 0 && result > 4096 && offset % 4096 == 0 && length > 4096) return 4096;
    return result;
  }

 private:
  const uint32_t failures_;
  std::atomic<uint32_t> count_{0};
};

// Without a session: what threads find behind wait() is always the layer that they asked for.
void test_contents(uint32_t io) {
  const Fixture fixture;
  const sbr::Bundle bundle = sbr::Bundle::open(fixture.path());
  const std::string content = fixture.bytes();
  uint32_t failed_steps = 0;
  for (uint32_t failures : {0u, 30u}) {
    for (uint32_t layers = 1; layers <= kLayers; ++layers) {
      Erratic tamper(failures);
      sbr::StreamOptions options;
      options.bytes = layers * bundle.unit_bytes();
      options.reader.kind = io;
      options.reader.tamper = &tamper;
      sbr::LayerStream stream(bundle, fixture.model().weights(), options);
      sbr::ThreadPool pool(1 + layers % 3, {});
      for (uint32_t step = 0; step < 40; ++step) {
        const uint32_t stop_at = step % 5 == 4 ? step % kLayers : kLayers;
        std::atomic<uint32_t> refused{0};
        std::atomic<bool> right{true};
        stream.begin_step(pool.size());
        pool.run([&](uint32_t tid) {
          for (uint32_t l = 0; l < stop_at; ++l) {
            if (!stream.wait(l, tid)) {
              ++refused;
              return;
            }
            for (const sbr::BundlePart& part : bundle.parts(l)) {
              const sbr::Matrix& matrix = stream.layer(l).*part.member;
              if (std::memcmp(matrix.data, content.data() + bundle.offset(l) + part.offset, matrix.bytes()) != 0)
                right = false;
            }
            stream.release(l);
            pool.barrier();
          }
        });
        // All threads of a step are refused, or none.
        EXPECT(right && (refused == 0 || refused == pool.size()));
        stream.end_step(refused == 0 && stop_at == kLayers);
        if (refused == 0) continue;
        ++failed_steps;
        try {
          stream.throw_failure();
        } catch (const sbr::Error& error) {
          EXPECT(error.status() == SBR_ERR_IO);
        }
      }
      EXPECT(failures != 0 || failed_steps == 0);
    }
  }
  EXPECT(failed_steps > 0);
}

// Storage that takes milliseconds: whenever the flag comes, the call ends and a repetition is right.
void test_cancel_while_waiting() {
  const Fixture fixture;
  sbr::Session session(fixture.model(), fixture.options(2, 2, 4));
  int cancelled = 0;
  // More attempts where the canceller always came too late: the machine has other work.
  for (int attempt = 0; attempt < 12 || (cancelled == 0 && attempt < 600); ++attempt) {
    storage.delay_us = 2000;
    std::thread canceller([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(3100 * (attempt % 12)));
      session.cancel();
    });
    const int32_t status = failing_prefill(session, fixture.tokens());
    canceller.join();
    storage.delay_us = 0;
    cancelled += status == SBR_ERR_CANCELLED;
    // One that came too late stops the next call.
    if (status != SBR_ERR_CANCELLED) EXPECT(failing_prefill(session, fixture.tokens()) == SBR_ERR_CANCELLED);
    EXPECT(fixture.right(prefill(session, fixture.tokens())));
    session.rewind(0);
  }
  EXPECT(cancelled > 0);
  // A session that ends while its reads are under way.
  storage.delay_us = 2000;
  for (uint32_t layers = 1; layers <= kLayers; ++layers) {
    sbr::Session brief(fixture.model(), fixture.options(layers));
    if (layers % 2 == 0) brief.decode(fixture.tokens().data(), 1, nullptr, nullptr);
  }
  storage.delay_us = 0;
}

}  // namespace

int main() {
  alarm(1500);  // what should end, and waits instead, is a failure too
  test_contents(SBR_IO_PREAD);
  if (can_use_io_uring(Fixture())) test_contents(SBR_IO_URING);
  test_equalities();
  test_too_small();
  test_counters();
  test_sessions_at_once();
  test_read_errors();
  test_truncated();
  test_flipped_byte();
  test_cancel_while_waiting();
  return finish("test_stream");
}
