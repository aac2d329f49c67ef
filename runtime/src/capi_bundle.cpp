// The C interface of bundles.
#include "capi_calls.h"
#include "experts/bundle.h"
#include "experts/bundle_writer.h"
#include "sbr/sbr.h"

using namespace sbr::capi;

extern "C" {

sbr_status sbr_bundle_plan(const char* model_path, uint32_t gathers, sbr_bundle_info* out, sbr_error* error) {
  return guarded(error, [&] {
    require(model_path, "model_path");
    require_struct(out, "out");
    write_struct(sbr::plan_bundle_of(model_path, gathers), out);
  });
}

sbr_status sbr_bundle_write(const char* model_path, const char* digest, uint32_t gathers, const char* path,
                            sbr_progress progress, void* user, sbr_error* error) {
  return guarded(error, [&] {
    require(model_path, "model_path");
    require(path, "path");
    sbr::write_bundle(model_path, digest == nullptr ? "" : digest, gathers, path, progress, user);
  });
}

sbr_status sbr_bundle_describe(const char* path, sbr_bundle_info* out, sbr_error* error) {
  return guarded(error, [&] {
    require(path, "path");
    require_struct(out, "out");
    write_struct(sbr::Bundle::open(path).info(), out);
  });
}

sbr_status sbr_bundle_verify(const char* path, sbr_progress progress, void* user, sbr_error* error) {
  return guarded(error, [&] {
    require(path, "path");
    sbr::verify_bundle(path, progress, user);
  });
}

}  // extern "C"
