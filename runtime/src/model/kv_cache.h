// Keys and values of the tokens so far. Per layer and key/value head the positions are contiguous, since one head's
// attention walks all of them: [layer][K, V][kv head][position][head_dim].
#pragma once

#include <cstdint>

#include "base/buffer.h"
#include "kernels/kernels.h"
#include "model/config.h"

namespace sbr {

class KvCache {
 public:
  // `type` is SBR_TYPE_F16 or SBR_TYPE_F32. `touch`: make every page resident now.
  KvCache(const Config& config, uint32_t n_ctx, uint32_t type, bool touch);

  static uint64_t bytes_for(const Config& config, uint32_t n_ctx, uint32_t type);
  uint32_t n_ctx() const { return n_ctx_; }
  uint32_t type() const { return type_; }
  uint64_t bytes() const { return pages_.bytes(); }
  uint64_t vector_bytes() const { return uint64_t{head_dim_} * element_bytes_; }  // one head of one position

  // Rounds to the cache's type.
  void store_key(const Kernels& kernels, uint32_t layer, uint32_t head, uint32_t position, const float* key);
  void store_value(const Kernels& kernels, uint32_t layer, uint32_t head, uint32_t position, const float* value);

  // Rule 11 over positions first .. first + n for the n_heads q heads that share key/value head `head`: q and out are
  // [n_heads][head_dim]; a head's scores, later its probabilities p, lie `stride` apart. mix adds to `out`.
  void scores(const Kernels& kernels, uint32_t layer, uint32_t head, uint32_t first, uint32_t n, const float* q,
              uint32_t n_heads, float scale, float* scores, size_t scores_stride) const;
  void mix(const Kernels& kernels, uint32_t layer, uint32_t head, uint32_t first, uint32_t n, const float* p,
           size_t p_stride, uint32_t n_heads, float* out) const;

 private:
  size_t offset(uint32_t layer, uint32_t kind, uint32_t head, uint32_t position) const;
  void store(const Kernels& kernels, size_t offset, const float* x);

  uint32_t n_ctx_;
  uint32_t n_head_kv_;
  uint32_t head_dim_;
  uint32_t type_;
  uint32_t element_bytes_;
  Pages pages_;
};

}  // namespace sbr
