#include "model/repack.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/kernels.h"
#include "model/layout.h"
#include "quant/interleave.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

// Matrices start at cache lines.
constexpr uint64_t kAlignment = 64;
// What one thread moves at a time, and then gives back: 4 MB take about 2 ms (2.3 GB took two threads 0.6 s).
constexpr uint64_t kPieceBytes = 4 << 20;
// A guess: more threads would only wait for the memory, or for the disk.
constexpr size_t kMostThreads = 8;

struct Move {
  Matrix* matrix;
  bool interleave;
};

struct Norm {
  const float** at;
  size_t n;
};

uint64_t aligned(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// What moves, and how.
class Plan {
 public:
  Plan(const MappedFile& file, const Config& config, uint32_t gathers, Weights* weights) : file_(file) {
    for (LayerWeights& layer : weights->layers) {
      for (const PlacedMatrix& placed : place_matrices(layer, config, weights->transposed_down, gathers))
        add(&(layer.*placed.member), placed.interleave);
      add(&layer.router, false);
    }
    add(&weights->output, (gathers & SBR_GATHER_OUTPUT) == 0 && whole_tiles(weights->output, weights->output.rows));
    for (Matrix* matrix : {&weights->predictor_fc1, &weights->predictor_fc2})
      add(matrix, whole_tiles(*matrix, matrix->rows));
    for (LayerWeights& layer : weights->layers) {
      for (const float** norm : {&layer.attn_norm, &layer.ffn_norm}) add(norm, config.n_embd);
      for (const float** norm : {&layer.attn_q_norm, &layer.attn_k_norm}) add(norm, config.head_dim);
    }
    add(&weights->output_norm, config.n_embd);
  }

  const std::vector<Move>& moves() const { return moves_; }
  const std::vector<Norm>& norms() const { return norms_; }
  uint64_t bytes() const { return bytes_; }

 private:
  void add(Matrix* matrix, bool interleave) {
    if (!*matrix || matrix->data < file_.data() || matrix->data >= file_.data() + file_.size()) return;
    moves_.push_back({matrix, interleave});
    bytes_ += aligned(matrix->bytes());
  }
  void add(const float** norm, size_t n) {
    if (*norm == nullptr) return;
    norms_.push_back({norm, n});
    bytes_ += aligned(n * sizeof(float));
  }

  const MappedFile& file_;
  std::vector<Move> moves_;
  std::vector<Norm> norms_;
  uint64_t bytes_ = 0;
};

// Rows of one matrix, a multiple of a tile where they are interleaved.
struct Piece {
  uint32_t type;
  bool interleave;
  uint64_t row_bytes, n_rows;
  const uint8_t* from;
  uint8_t* to;
};

void move(const MappedFile& file, const Piece& piece) {
  const uint64_t bytes = piece.n_rows * piece.row_bytes;
  if (piece.interleave) {
    interleave_rows(piece.type, piece.from, piece.row_bytes, piece.n_rows, piece.to);
  } else {
    std::memcpy(piece.to, piece.from, bytes);
  }
  file.release(static_cast<uint64_t>(piece.from - file.data()), bytes);
}

}  // namespace

Pages repack(const MappedFile& file, const Config& config, uint32_t gathers, Weights* weights) {
  const Plan plan(file, config, gathers, weights);
  Pages memory(plan.bytes(), true);
  std::vector<Piece> pieces;
  uint8_t* to = memory.data();
  for (const Move& m : plan.moves()) {
    Matrix& matrix = *m.matrix;
    const uint64_t rows = std::max<uint64_t>(kPieceBytes / matrix.row_bytes / kInterleavedRows, 1) * kInterleavedRows;
    for (uint64_t r = 0; r < matrix.rows; r += rows) {
      pieces.push_back({matrix.type, m.interleave, matrix.row_bytes, std::min(rows, matrix.rows - r), matrix.row(r),
                        to + r * matrix.row_bytes});
    }
    matrix.data = to;
    if (m.interleave) matrix.type += kInterleaved;
    to += aligned(matrix.bytes());
  }
  for (const Norm& norm : plan.norms()) {
    *norm.at = static_cast<const float*>(std::memcpy(to, *norm.at, norm.n * sizeof(float)));
    to += aligned(norm.n * sizeof(float));
  }
  if (weights->tied_output) weights->token_embd = weights->output;

  std::atomic<size_t> next{0};
  ThreadPool pool(static_cast<uint32_t>(std::clamp<size_t>(allowed_cpus().size(), 1, kMostThreads)), {});
  pool.run([&](uint32_t) {
    for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < pieces.size();) move(file, pieces[i]);
  });
  return memory;
}

}  // namespace sbr
