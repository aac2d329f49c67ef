#include "experts/bundle.h"

#include <algorithm>

#include "base/checksum.h"
#include "base/error.h"
#include "io/file.h"
#include "kernels/kernels.h"

namespace sbr {
namespace {

std::string quoted(const char* text) { return std::string("\"") + text + "\""; }

bool same_parts(const BundleHeader& a, const BundleHeader& b) {
  return std::equal(a.parts.begin(), a.parts.end(), b.parts.begin(), b.parts.end(), [](const auto& x, const auto& y) {
    return std::equal(x.begin(), x.end(), y.begin(), y.end(), [](const BundlePart& p, const BundlePart& q) {
      return p.member == q.member && p.offset == q.offset && p.view.type == q.view.type && p.view.cols == q.view.cols &&
             p.view.rows == q.view.rows;
    });
  });
}

// What the model asks for and the bundle does not have; "" when they fit.
std::string difference(const BundleHeader& bundle, const BundleHeader& model) {
  const auto differs = [](const std::string& what, const std::string& there, const std::string& here) {
    return what + " is " + there + " in the bundle and " + here + " in the model";
  };
  if (bundle.architecture != model.architecture)
    return differs("the architecture", quoted(bundle.architecture.c_str()), quoted(model.architecture.c_str()));
  for (size_t i = 0; i < kBundleShape; ++i) {
    if (bundle.shape[i] != model.shape[i])
      return differs(kBundleShapeNames[i], std::to_string(bundle.shape[i]), std::to_string(model.shape[i]));
  }
  if (bundle.info.gathers != model.info.gathers) {
    const auto purpose = [](const BundleHeader& h) { return h.info.gathers != 0 ? "a sparse FFN" : "a dense FFN"; };
    return std::string("it was made for ") + purpose(bundle) + ", the model is loaded for " + purpose(model);
  }
  if (same_parts(bundle, model)) return "";
  const std::string there = bundle.info.layout, here = model.info.layout;
  return there != here ? differs("the layout", quoted(there.c_str()), quoted(here.c_str()))
                       : "the types of some layers' matrices are others than in the model";
}

}  // namespace

Bundle Bundle::open(const std::string& path) {
  const InputFile file(path);
  std::vector<uint8_t> bytes(std::min(file.size(), kFirstLook));
  file.read_at(0, bytes.data(), bytes.size());
  bytes.resize(header_bytes(bytes.data(), bytes.size(), file.size(), path));
  file.read_at(0, bytes.data(), bytes.size());
  // A file that changed between the two looks has another checksum.
  return Bundle(path, decode_header(bytes.data(), bytes.size(), file.size(), path));
}

void Bundle::require(const Config& config, const Weights& weights, uint32_t gathers, const std::string& digest) const {
  std::string problem = difference(header_, plan_bundle(config, weights, gathers, ""));
  if (problem.empty() && !digest.empty() && digest != header_.info.model_digest) {
    problem = header_.info.model_digest[0] == '\0'
                  ? "it does not say which model file it was made from"
                  : "it was made from the model file with the digest " + std::string(header_.info.model_digest) +
                        ", this one's is " + digest;
  }
  if (problem.empty()) return;
  throw Error(SBR_ERR_FORMAT, path_ + ": does not belong to this model: " + problem + "; make the bundle again");
}

bool Bundle::intact(uint32_t unit, const uint8_t* bytes) const {
  return Checksum::of(bytes, header_.info.unit_bytes) == header_.checksums[unit];
}

std::string Bundle::unit_name(uint32_t unit) const {
  const std::string layer = "layer " + std::to_string(unit / units_per_layer());
  return kind() == SBR_BUNDLE_EXPERTS ? "expert " + std::to_string(unit % units_per_layer()) + " of " + layer : layer;
}

}  // namespace sbr
