#include "model/weights.h"

#include <set>

#include "base/error.h"
#include "kernels/kernels.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

using Shape = std::vector<uint64_t>;

constexpr uint64_t kMaxPredictorRank = 65536;

std::string describe(const uint64_t* ne, size_t n) {
  std::string text = "[";
  for (size_t i = 0; i < n; ++i) text += (i == 0 ? "" : ",") + std::to_string(ne[i]);
  return text + "]";
}

std::string describe_type(uint32_t type) {
  const char* name = type_name(type);
  return name != nullptr ? name : "number " + std::to_string(type);
}

bool computable(uint32_t type) {
  return type < kInterleaved && kernels_for(SBR_ISA_SCALAR)->weights[type].gemv != nullptr;
}

std::string computable_types() {
  std::string text;
  for (uint32_t type = 0; type < kInterleaved; ++type) {
    if (computable(type)) text += (text.empty() ? "" : ", ") + describe_type(type);
  }
  return text;
}

// Hands out tensors by name and remembers which were asked for.
class Binder {
 public:
  Binder(const GgufFile& file, const uint8_t* data) : file_(file), data_(data) {}

  [[noreturn]] void fail(int32_t status, const std::string& tensor, const std::string& what) const {
    throw Error(status, file_.name() + ": tensor " + gguf_quoted(tensor) + " " + what);
  }

  bool has(const std::string& name) const { return file_.find_tensor(name) != nullptr; }

  const GgufTensor& tensor(const std::string& name) {
    const GgufTensor* found = file_.find_tensor(name);
    if (found == nullptr) fail(SBR_ERR_FORMAT, name, "is missing");
    claimed_.insert(name);
    return *found;
  }

  // A matrix of this shape; three dimensions (experts) are flattened to rows.
  Matrix matrix(const std::string& name, const Shape& shape) {
    const GgufTensor& found = tensor(name);
    require_shape(found, shape);
    return view(found);
  }

  const float* vector(const std::string& name, uint64_t n) {
    const GgufTensor& found = tensor(name);
    require_shape(found, {n});
    if (found.type != SBR_TYPE_F32)
      fail(SBR_ERR_UNSUPPORTED, name,
           "is of type " + describe_type(found.type) + ", which is not supported here (supported: f32)");
    return reinterpret_cast<const float*>(data_ + found.offset);
  }

  Matrix view(const GgufTensor& found) const {
    if (!computable(found.type)) {
      fail(SBR_ERR_UNSUPPORTED, found.name,
           "is of type " + describe_type(found.type) + ", which is not supported (supported: " + computable_types() +
               ")");
    }
    Matrix matrix;
    matrix.data = data_ + found.offset;
    matrix.type = found.type;
    matrix.cols = found.ne[0];
    matrix.rows = found.ne[1] * found.ne[2] * found.ne[3];
    matrix.row_bytes = type_row_bytes(found.type, matrix.cols);
    // Rule 3 quantises activations in blocks of 32.
    if (reads_quantised(found.type) && matrix.cols % 32 != 0) {
      fail(SBR_ERR_UNSUPPORTED, found.name,
           "has rows of " + std::to_string(matrix.cols) + " elements, which is not a multiple of 32");
    }
    return matrix;
  }

  void require_shape(const GgufTensor& found, const Shape& shape) const {
    bool equal = true;
    for (size_t i = 0; i < 4; ++i) equal = equal && found.ne[i] == (i < shape.size() ? shape[i] : 1);
    if (!equal) {
      fail(SBR_ERR_FORMAT, found.name,
           "has the shape " + describe(found.ne, found.n_dims) + ", expected " + describe(shape.data(), shape.size()));
    }
  }

  // A bias or scale that is silently left out gives plausible wrong results.
  void require_all_claimed() const {
    for (const GgufTensor& found : file_.tensors()) {
      if (claimed_.count(found.name) == 0)
        fail(SBR_ERR_UNSUPPORTED, found.name,
             "is not used by this architecture's implementation; the model would compute something else without it");
    }
  }

 private:
  const GgufFile& file_;
  const uint8_t* data_;
  std::set<std::string> claimed_;
};

void bind_attention(Binder& binder, const Config& c, const std::string& block, LayerWeights* layer) {
  layer->attn_norm = binder.vector(block + "attn_norm.weight", c.n_embd);
  layer->attn_q = binder.matrix(block + "attn_q.weight", {c.n_embd, c.q_dim()});
  layer->attn_k = binder.matrix(block + "attn_k.weight", {c.n_embd, c.kv_dim()});
  layer->attn_v = binder.matrix(block + "attn_v.weight", {c.n_embd, c.kv_dim()});
  layer->attn_output = binder.matrix(block + "attn_output.weight", {c.q_dim(), c.n_embd});
  if (c.qk_norm) {
    layer->attn_q_norm = binder.vector(block + "attn_q_norm.weight", c.head_dim);
    layer->attn_k_norm = binder.vector(block + "attn_k_norm.weight", c.head_dim);
  }
}

void bind_dense_ffn(Binder& binder, const Config& c, const std::string& block, LayerWeights* layer) {
  layer->gate = binder.matrix(block + "ffn_gate.weight", {c.n_embd, c.n_ff});
  layer->up = binder.matrix(block + "ffn_up.weight", {c.n_embd, c.n_ff});
  layer->down = binder.matrix(block + "ffn_down.weight", {c.n_ff, c.n_embd});
}

// Returns whether down is neuron-major, which only its shape tells.
bool bind_experts(Binder& binder, const Config& c, const std::string& block, LayerWeights* layer) {
  const std::string router = block + "ffn_gate_inp.weight";
  layer->router = binder.matrix(router, {c.n_embd, c.n_expert});
  // SmallThinker's reads the residual stream itself, which nothing quantises; nobody quantises others either.
  if (reads_quantised(layer->router))
    binder.fail(SBR_ERR_UNSUPPORTED, router, "is a quantised router, which is not supported");
  layer->gate = binder.matrix(block + "ffn_gate_exps.weight", {c.n_embd, c.n_ff, c.n_expert});
  layer->up = binder.matrix(block + "ffn_up_exps.weight", {c.n_embd, c.n_ff, c.n_expert});

  const std::string name = block + "ffn_down_exps.weight";
  const GgufTensor& down = binder.tensor(name);
  const bool standard = down.ne[0] == c.n_ff && down.ne[1] == c.n_embd && down.ne[2] == c.n_expert && down.ne[3] == 1;
  const bool transposed =
      c.relu_experts() && down.ne[0] == c.n_embd && down.ne[1] == c.n_ff && down.ne[2] == c.n_expert && down.ne[3] == 1;
  if (!standard && !transposed) {
    const Shape expected[2] = {{c.n_ff, c.n_embd, c.n_expert}, {c.n_embd, c.n_ff, c.n_expert}};
    binder.fail(SBR_ERR_FORMAT, name,
                "has the shape " + describe(down.ne, down.n_dims) + ", expected " + describe(expected[0].data(), 3) +
                    (c.relu_experts() ? " or, transposed, " + describe(expected[1].data(), 3) : ""));
  }
  layer->down = binder.view(down);
  // With as many neurons as channels the shape is ambiguous; the standard layout is what every tool writes.
  if (standard) return false;
  if (kernels_for(SBR_ISA_SCALAR)->weights[down.type].axpy_rows == nullptr) {
    binder.fail(SBR_ERR_UNSUPPORTED, name,
                "is a transposed down matrix of type " + describe_type(down.type) + ", which is not supported");
  }
  if (c.n_embd % 32 != 0)
    binder.fail(SBR_ERR_UNSUPPORTED, name, "is a transposed down matrix, whose rows must be a multiple of 32 elements");
  return true;
}

// One 1-D tensor: fc1's rows [D], then fc2's [r]; r = elements / (D + V).
void bind_predictor(Binder& binder, const Config& c, Weights* weights) {
  const char* names[] = {"lm_head_profiler.weight", "blk.lm_head_profiler.weight"};
  const char* name = nullptr;
  for (const char* candidate : names) {
    if (name == nullptr && binder.has(candidate)) name = candidate;
  }
  if (name == nullptr) return;
  const GgufTensor& found = binder.tensor(name);
  const uint64_t elements = found.ne[0];
  const uint64_t per_rank = uint64_t{c.n_embd} + c.n_vocab;
  const uint64_t rank = elements / per_rank;
  if (found.n_dims != 1 || rank == 0 || rank * per_rank != elements) {
    binder.fail(SBR_ERR_FORMAT, name,
                "has the shape " + describe(found.ne, found.n_dims) + ", expected [r * " + std::to_string(per_rank) +
                    "] for a rank r");
  }
  if (found.type != SBR_TYPE_Q4_0)
    binder.fail(SBR_ERR_UNSUPPORTED, name,
                "is of type " + describe_type(found.type) + ", which is not supported here (supported: q4_0)");
  if (rank % 32 != 0 || rank > kMaxPredictorRank || c.n_embd % 32 != 0)
    binder.fail(SBR_ERR_UNSUPPORTED, name,
                "has the rank " + std::to_string(rank) + " over " + std::to_string(c.n_embd) +
                    " channels, which is not supported (both must be multiples of 32, the rank at most " +
                    std::to_string(kMaxPredictorRank) + ")");
  const Matrix whole = binder.view(found);
  Matrix fc1 = whole;
  fc1.cols = c.n_embd;
  fc1.rows = rank;
  fc1.row_bytes = type_row_bytes(found.type, fc1.cols);
  Matrix fc2 = whole;
  fc2.data = fc1.data + fc1.bytes();
  fc2.cols = rank;
  fc2.rows = c.n_vocab;
  fc2.row_bytes = type_row_bytes(found.type, fc2.cols);
  weights->predictor_fc1 = fc1;
  weights->predictor_fc2 = fc2;
  weights->predictor_rank = static_cast<uint32_t>(rank);
}

}  // namespace

bool reads_quantised(uint32_t type) { return type != SBR_TYPE_F32 && type != SBR_TYPE_F16 && type != SBR_TYPE_BF16; }

Weights bind_weights(const GgufFile& file, const uint8_t* data, const Config& c) {
  Binder binder(file, data);
  Weights weights;
  weights.token_embd = binder.matrix("token_embd.weight", {c.n_embd, c.n_vocab});
  weights.output_norm = binder.vector("output_norm.weight", c.n_embd);
  weights.tied_output = !binder.has("output.weight");
  weights.output = weights.tied_output ? weights.token_embd : binder.matrix("output.weight", {c.n_embd, c.n_vocab});
  if (c.lm_head_predictor) bind_predictor(binder, c, &weights);

  weights.layers.resize(c.n_layer);
  uint32_t transposed = 0;
  for (uint32_t l = 0; l < c.n_layer; ++l) {
    const std::string block = "blk." + std::to_string(l) + ".";
    LayerWeights* layer = &weights.layers[l];
    layer->ffn_norm = binder.vector(block + "ffn_norm.weight", c.n_embd);
    bind_attention(binder, c, block, layer);
    if (c.n_expert == 0) {
      bind_dense_ffn(binder, c, block, layer);
    } else if (bind_experts(binder, c, block, layer)) {
      ++transposed;
    }
  }
  if (transposed != 0 && transposed != c.n_layer) {
    throw Error(SBR_ERR_UNSUPPORTED, file.name() + ": " + std::to_string(transposed) + " of " +
                                         std::to_string(c.n_layer) +
                                         " layers have a transposed down matrix; all or none are supported");
  }
  weights.transposed_down = transposed != 0;
  binder.require_all_claimed();

  for (const GgufTensor& tensor : file.tensors()) {
    weights.n_params += tensor.ne[0] * tensor.ne[1] * tensor.ne[2] * tensor.ne[3];
    weights.weight_bytes += tensor.bytes;
  }
  return weights;
}

}  // namespace sbr
