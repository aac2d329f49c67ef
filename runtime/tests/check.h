// CHECK macros of the native tests: a failed check prints where and what, and the program goes on; check_result() is
// main's exit code.
#pragma once

#include <cstdio>
#include <cstdlib>

inline int check_failures = 0;

// At most this many failures are printed; a kernel gone wrong fails everywhere.
constexpr int kCheckPrinted = 20;

#define CHECK(condition)                                                             \
  do {                                                                               \
    if (!(condition)) {                                                              \
      if (++check_failures <= kCheckPrinted) {                                       \
        std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      }                                                                              \
    }                                                                                \
  } while (0)

// With a printf-style explanation.
#define CHECK_MSG(condition, ...)                                                    \
  do {                                                                               \
    if (!(condition)) {                                                              \
      if (++check_failures <= kCheckPrinted) {                                       \
        std::fprintf(stderr, "%s:%d: failed: %s: ", __FILE__, __LINE__, #condition); \
        std::fprintf(stderr, __VA_ARGS__);                                           \
        std::fprintf(stderr, "\n");                                                  \
      }                                                                              \
    }                                                                                \
  } while (0)

inline int check_result() {
  if (check_failures == 0) return EXIT_SUCCESS;
  std::fprintf(stderr, "%d checks failed\n", check_failures);
  return EXIT_FAILURE;
}
