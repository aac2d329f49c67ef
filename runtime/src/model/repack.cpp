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
  Matrix* other;  // nullptr, or the matrix of which row r comes after row r of this one
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
      const bool in_turns = weights->transposed_down && (gathers & SBR_GATHER_UP) != 0 && movable(layer.up) &&
                            movable(layer.down) && layer.up.rows == layer.down.rows &&
                            layer.up.row_bytes == layer.down.row_bytes;
      for (const PlacedMatrix& placed : place_matrices(layer, config, weights->transposed_down, gathers)) {
        Matrix* matrix = &(layer.*placed.member);
        if (in_turns && matrix == &layer.down) continue;
        add(matrix, placed.interleave, in_turns && matrix == &layer.up ? &layer.down : nullptr);
      }
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
  bool movable(const Matrix& matrix) const {
    return matrix && matrix.data >= file_.data() && matrix.data < file_.data() + file_.size();
  }
  void add(Matrix* matrix, bool interleave, Matrix* other = nullptr) {
    if (!movable(*matrix)) return;
    moves_.push_back({matrix, interleave, other});
    bytes_ += aligned(matrix->bytes() * (other == nullptr ? 1 : 2));
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
  uint64_t row_bytes, n_rows, stride;
  const uint8_t* from;
  uint8_t* to;
};

void move(const MappedFile& file, const Piece& piece) {
  const uint64_t bytes = piece.n_rows * piece.row_bytes;
  if (piece.interleave) {
    interleave_rows(piece.type, piece.from, piece.row_bytes, piece.n_rows, piece.to);
  } else if (piece.stride == piece.row_bytes) {
    std::memcpy(piece.to, piece.from, bytes);
  } else {
    for (uint64_t r = 0; r < piece.n_rows; ++r)
      std::memcpy(piece.to + r * piece.stride, piece.from + r * piece.row_bytes, piece.row_bytes);
  }
  file.release(static_cast<uint64_t>(piece.from - file.data()), bytes);
}

}  // namespace

Pages repack(const MappedFile& file, const Config& config, uint32_t gathers, Weights* weights) {
  const Plan plan(file, config, gathers, weights);
  Pages memory(plan.bytes(), true);
  std::vector<Piece> pieces;
  uint8_t* to = memory.data();
  const auto place = [&](Matrix& matrix, bool interleave, uint64_t gap, uint8_t* at) {
    const uint64_t rows = std::max<uint64_t>(kPieceBytes / matrix.row_bytes / kInterleavedRows, 1) * kInterleavedRows;
    const uint64_t stride = matrix.row_bytes + gap;
    for (uint64_t r = 0; r < matrix.rows; r += rows) {
      pieces.push_back({matrix.type, interleave, matrix.row_bytes, std::min(rows, matrix.rows - r), stride,
                        matrix.row(r), at + r * stride});
    }
    matrix.data = at;
    matrix.gap = gap;
    if (interleave) matrix.type += kInterleaved;
  };
  for (const Move& m : plan.moves()) {
    const uint64_t gap = m.other == nullptr ? 0 : m.other->row_bytes;
    place(*m.matrix, m.interleave, gap, to);
    if (m.other != nullptr) place(*m.other, false, m.matrix->row_bytes, to + m.matrix->row_bytes);
    to += aligned(m.matrix->bytes() + (m.other == nullptr ? 0 : m.other->bytes()));
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
