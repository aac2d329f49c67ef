#include "model/kv_cache.h"

#include <cstring>
#include <new>

#include "sbr/sbr.h"

namespace sbr {
namespace {

uint32_t element_bytes_of(uint32_t type) { return type == SBR_TYPE_F16 ? 2 : 4; }

}  // namespace

uint64_t KvCache::bytes_for(const Config& c, uint32_t n_ctx, uint32_t type) {
  size_t bytes = 0;
  if (__builtin_mul_overflow(size_t{2} * element_bytes_of(type) * c.kv_dim(), size_t{n_ctx}, &bytes) ||
      __builtin_mul_overflow(bytes, size_t{c.n_layer}, &bytes)) {
    throw std::bad_alloc();
  }
  return bytes;
}

KvCache::KvCache(const Config& config, uint32_t n_ctx, uint32_t type, bool touch)
    : n_ctx_(n_ctx),
      n_head_kv_(config.n_head_kv),
      head_dim_(config.head_dim),
      type_(type),
      element_bytes_(element_bytes_of(type)),
      pages_(bytes_for(config, n_ctx, type), touch) {
  if (touch) pages_.touch();
}

size_t KvCache::offset(uint32_t layer, uint32_t kind, uint32_t head, uint32_t position) const {
  const size_t vector = ((size_t{layer} * 2 + kind) * n_head_kv_ + head) * n_ctx_ + position;
  return vector * head_dim_ * element_bytes_;
}

void KvCache::store(const Kernels& kernels, size_t offset, const float* x) {
  uint8_t* to = pages_.data() + offset;
  if (type_ == SBR_TYPE_F16) {
    kernels.f32_to_f16(x, head_dim_, reinterpret_cast<uint16_t*>(to));
  } else {
    std::memcpy(to, x, size_t{head_dim_} * sizeof(float));
  }
}

void KvCache::store_key(const Kernels& kernels, uint32_t layer, uint32_t head, uint32_t position, const float* key) {
  store(kernels, offset(layer, 0, head, position), key);
}

void KvCache::store_value(const Kernels& kernels, uint32_t layer, uint32_t head, uint32_t position,
                          const float* value) {
  store(kernels, offset(layer, 1, head, position), value);
}

void KvCache::scores(const Kernels& kernels, uint32_t layer, uint32_t head, uint32_t first, uint32_t n, const float* q,
                     uint32_t n_heads, float scale, float* scores, size_t scores_stride) const {
  const uint8_t* k = pages_.data() + offset(layer, 0, head, first);
  if (type_ == SBR_TYPE_F16) {
    kernels.attn_scores_f16(q, n_heads, reinterpret_cast<const uint16_t*>(k), head_dim_, n, head_dim_, scale, scores,
                            scores_stride);
  } else {
    kernels.attn_scores_f32(q, n_heads, reinterpret_cast<const float*>(k), head_dim_, n, head_dim_, scale, scores,
                            scores_stride);
  }
}

void KvCache::mix(const Kernels& kernels, uint32_t layer, uint32_t head, uint32_t first, uint32_t n, const float* p,
                  size_t p_stride, uint32_t n_heads, float* out) const {
  const uint8_t* v = pages_.data() + offset(layer, 1, head, first);
  if (type_ == SBR_TYPE_F16) {
    kernels.attn_mix_f16(p, p_stride, n_heads, reinterpret_cast<const uint16_t*>(v), head_dim_, n, head_dim_, out);
  } else {
    kernels.attn_mix_f32(p, p_stride, n_heads, reinterpret_cast<const float*>(v), head_dim_, n, head_dim_, out);
  }
}

}  // namespace sbr
