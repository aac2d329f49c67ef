// Tiny models whose experts stay on storage, and sessions on them.
#pragma once

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "experts/bundle_writer.h"
#include "tiny_models.h"

namespace sbr_test {

// A model of which the bundle holds the experts, and the same one in memory.
class Bundled {
 public:
  explicit Bundled(const sbr_synth_spec& spec, bool gathers_up = false)
      : resident_(spec), bundle_(resident_.path() + ".bundle") {
    const uint32_t gathers = gathers_up ? SBR_GATHER_UP : 0;
    sbr::write_bundle(resident_.path(), "", gathers, bundle_, nullptr, nullptr);
    sbr_model_options options = {};
    options.struct_size = sizeof options;
    options.load_mode = SBR_LOAD_REPACK;
    options.gathers = gathers;
    options.bundle = bundle_.c_str();
    options.populate = 1;
    model_ = std::make_unique<sbr::Model>(resident_.path(), options);
  }
  ~Bundled() { std::remove(bundle_.c_str()); }

  const sbr::Model& resident() const { return resident_.get(); }
  const sbr::Model& get() const { return *model_; }
  const std::string& path() const { return resident_.path(); }
  const std::string& bundle() const { return bundle_; }
  uint64_t unit_bytes() const { return model_->bundle()->unit_bytes(); }
  uint32_t n_units() const { return model_->bundle()->n_units(); }

 private:
  TinyModel resident_;
  std::string bundle_;
  std::unique_ptr<sbr::Model> model_;
};

inline sbr_session_options cached_options(const Bundled& model, uint64_t units) {
  sbr_session_options options = session_options();
  options.isa = SBR_ISA_AUTO;
  options.cache_bytes = units * model.unit_bytes();
  options.prefetch = SBR_PREFETCH_EXACT;
  return options;
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// The status of what `call` throws, and its sentence.
template <typename Call>
int32_t status_of(const Call& call, std::string* sentence) {
  try {
    call();
  } catch (const sbr::Error& error) {
    *sentence = error.what();
    return error.status();
  }
  return SBR_OK;
}

// Readers that this system allows.
inline std::vector<uint32_t> readers(const Bundled& model) {
  std::vector<uint32_t> kinds = {SBR_IO_PREAD};
  sbr_session_options options = cached_options(model, 2);
  options.io = SBR_IO_URING;
  std::string sentence;
  if (status_of([&] { sbr::Session session(model.get(), options); }, &sentence) == SBR_OK)
    kinds.push_back(SBR_IO_URING);
  return kinds;
}

}  // namespace sbr_test
