#include "model/model.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "base/error.h"
#include "gguf/gguf.h"
#include "kernels/kernels.h"
#include "model/repack.h"
#include "quant/reference.h"

namespace sbr {
namespace {

void copy_text(const std::string& text, char* out, size_t capacity) {
  std::memset(out, 0, capacity);
  std::snprintf(out, capacity, "%s", text.c_str());
}

// Piece by piece, giving the mapping's pages back: otherwise the process would for a moment hold the weights twice.
Pages read_all(const MappedFile& file) {
  constexpr uint64_t kPiece = 16u << 20;
  Pages copy(file.size(), true);
  for (uint64_t at = 0; at < file.size(); at += kPiece) {
    const uint64_t n = std::min(kPiece, file.size() - at);
    std::memcpy(copy.data() + at, file.data() + at, n);
    file.release(at, n);
  }
  return copy;
}

}  // namespace

Model::Model(const std::string& path, const sbr_model_options& options) {
  const auto begin = std::chrono::steady_clock::now();
  file_ = MappedFile::open(path);
  file_bytes_ = file_.size();
  const GgufFile gguf = GgufFile::parse(file_.data(), file_.size(), file_.size(), path);

  std::vector<std::string> warnings;
  config_ = read_config(gguf, &warnings);

  const uint8_t* bytes = file_.data();
  if (options.load_mode == SBR_LOAD_READ) {
    copy_ = read_all(file_);
    file_ = MappedFile();
    bytes = copy_.data();
  }
  weights_ = bind_weights(gguf, bytes, config_);

  if (config_.relu_experts()) down_layout_ = weights_.transposed_down ? SBR_DOWN_TRANSPOSED : SBR_DOWN_STANDARD;
  if (options.bundle != nullptr) open_bundle(options);
  if (options.requantise_down != 0 && down_layout_ == SBR_DOWN_STANDARD) requantise_down(path);
  if (options.load_mode == SBR_LOAD_REPACK) repacked_ = repack(file_, config_, options.gathers, &weights_);
  if (options.populate != 0) touch_weights();
  // What is read from now on is a row of embeddings here and there. Reading around it (8 MiB on some machines) would
  // fill the memory that a limit leaves.
  if (options.load_mode == SBR_LOAD_REPACK) file_.read_randomly();

  load_ns_ = static_cast<uint64_t>(std::chrono::nanoseconds(std::chrono::steady_clock::now() - begin).count());

  for (const std::string& sentence : warnings) warnings_ += (warnings_.empty() ? "" : "\n") + sentence;
}

// Its matrices are left in the file and out of repack(); what they are comes from the bundle.
void Model::open_bundle(const sbr_model_options& options) {
  if (options.load_mode != SBR_LOAD_REPACK) {
    throw Error(SBR_ERR_ARGUMENT,
                "options->bundle needs options->load_mode 2 (repack): a bundle holds matrices as that lays them out");
  }
  if (options.requantise_down != 0) {
    throw Error(
        SBR_ERR_ARGUMENT,
        "options->requantise_down cannot be had with options->bundle, which holds down matrices as the file has "
        "them; load the model without a bundle, or a file whose down matrices are transposed");
  }
  bundle_ = std::make_unique<Bundle>(Bundle::open(options.bundle));
  bundle_->require(config_, weights_, options.gathers, options.digest == nullptr ? "" : options.digest);
  for (uint32_t l = 0; l < config_.n_layer; ++l) {
    for (const BundlePart& part : bundle_->parts(l)) {
      Matrix& matrix = weights_.layers[l].*part.member;
      matrix.data = nullptr;
      matrix.type = part.view.type;
    }
  }
}

// [F,D] per expert, quantised along F, becomes [D,F], quantised along D.
void Model::requantise_down(const std::string& path) {
  const size_t F = config_.n_ff, D = config_.n_embd;
  std::vector<float> row(F), transposed(F * D);
  for (uint32_t l = 0; l < config_.n_layer; ++l) {
    Matrix& down = weights_.layers[l].down;
    Matrix neurons = down;
    neurons.cols = D;
    neurons.rows = uint64_t{config_.n_expert} * F;
    neurons.row_bytes = type_row_bytes(down.type, D);
    if (D % 32 != 0 || neurons.row_bytes == 0 || kernels_for(SBR_ISA_SCALAR)->weights[down.type].axpy_rows == nullptr) {
      throw Error(SBR_ERR_UNSUPPORTED, path + ": tensor blk." + std::to_string(l) +
                                           ".ffn_down_exps.weight: a down matrix of type " + type_name(down.type) +
                                           " cannot be transposed");
    }
    Pages pages(neurons.bytes(), true);
    for (uint64_t e = 0; e < config_.n_expert; ++e) {
      for (size_t c = 0; c < D; ++c) {
        dequantise_row(down.type, down.row(e * D + c), F, row.data());
        for (size_t j = 0; j < F; ++j) transposed[j * D + c] = row[j];
      }
      for (size_t j = 0; j < F; ++j) {
        quantise_row(down.type, transposed.data() + j * D, D, pages.data() + (e * F + j) * neurons.row_bytes);
      }
    }
    const uint8_t* base = copy_.data() != nullptr ? copy_.data() : file_.data();
    const uint64_t offset = static_cast<uint64_t>(down.data - base);
    if (copy_.data() != nullptr) {
      copy_.release(offset, down.bytes());
    } else {
      file_.release(offset, down.bytes());
    }
    neurons.data = pages.data();
    requantised_.push_back(std::move(pages));
    down = neurons;
  }
  down_layout_ = SBR_DOWN_REQUANTISED;
}

// What the model reads, not the whole file: matrices that were re-quantised have given their pages back.
void Model::touch_weights() const {
  const auto touch = [](const void* data, uint64_t bytes) {
    if (data == nullptr) return;  // there is none, or it is in a bundle
    volatile uint8_t sink = 0;
    const auto* at = static_cast<const uint8_t*>(data);
    for (uint64_t i = 0; i < bytes; i += page_size()) sink = at[i];
    if (bytes != 0) sink = at[bytes - 1];
    (void)sink;
  };
  const auto touch_norm = [&](const float* norm, uint32_t n) { touch(norm, n * sizeof(float)); };
  for (const Matrix* m : {&weights_.token_embd, &weights_.output, &weights_.predictor_fc1, &weights_.predictor_fc2})
    touch(m->data, m->bytes());
  touch_norm(weights_.output_norm, config_.n_embd);
  for (const LayerWeights& l : weights_.layers) {
    for (const Matrix* m : {&l.attn_q, &l.attn_k, &l.attn_v, &l.attn_output, &l.router, &l.gate, &l.up, &l.down})
      touch(m->data, m->bytes());
    for (const float* norm : {l.attn_norm, l.ffn_norm}) touch_norm(norm, config_.n_embd);
    for (const float* norm : {l.attn_q_norm, l.attn_k_norm}) touch_norm(norm, config_.head_dim);
  }
}

bool Model::gathers_up() const {
  if (config_.n_expert == 0) return true;
  return std::all_of(weights_.layers.begin(), weights_.layers.end(),
                     [](const LayerWeights& layer) { return layer.up.type < kInterleaved; });
}

sbr_model_info Model::info() const {
  const Config& c = config_;
  sbr_model_info info = {};
  info.struct_size = sizeof info;
  info.n_layer = c.n_layer;
  info.n_embd = c.n_embd;
  info.n_head = c.n_head;
  info.n_head_kv = c.n_head_kv;
  info.head_dim = c.head_dim;
  info.n_ff = c.n_ff;
  info.n_expert = c.n_expert;
  info.n_expert_used = c.n_expert_used;
  info.n_vocab = c.n_vocab;
  info.n_ctx_train = c.n_ctx_train;
  info.sliding_window = c.sliding_window;
  info.down_layout = down_layout_;
  info.lm_head_predictor_rank = weights_.predictor_rank;
  info.tied_output = weights_.tied_output;
  info.relu = c.activation == Nonlinearity::kRelu;
  info.n_params = weights_.n_params;
  // One embedding row, but the whole output matrix; the predictor only chooses, it is no part of the model.
  const uint64_t D = c.n_embd, V = c.n_vocab;
  uint64_t active = weights_.n_params - uint64_t{weights_.predictor_rank} * (D + V);
  if (!weights_.tied_output) active -= V * D - D;
  if (c.n_expert != 0) active -= uint64_t{c.n_layer} * (c.n_expert - c.n_expert_used) * 3 * D * c.n_ff;
  info.n_params_active = active;
  info.file_bytes = file_bytes_;
  info.weight_bytes = weights_.weight_bytes;
  info.load_ns = load_ns_;
  info.anonymous_bytes = copy_.bytes() + repacked_.bytes();
  for (const Pages& pages : requantised_) info.anonymous_bytes += pages.bytes();
  if (bundle_ != nullptr) {
    info.bundle_bytes = bundle_->n_units() * bundle_->unit_bytes();
    info.unit_bytes = bundle_->unit_bytes();
    info.bundle_kind = bundle_->kind();
  }
  copy_text(c.architecture, info.architecture, sizeof info.architecture);
  copy_text(c.name, info.name, sizeof info.name);
  return info;
}

}  // namespace sbr
