// The least that a test program needs: EXPECT counts and prints what failed, finish() is main's return value.
#pragma once

#include <cstdio>

namespace sbr_test {

inline int& failures() {
  static int count = 0;
  return count;
}

inline bool expect(bool condition, const char* text, const char* file, int line) {
  if (!condition && ++failures() <= 50) std::fprintf(stderr, "%s:%d: expected %s\n", file, line, text);
  return condition;
}

inline int finish(const char* name) {
  if (failures() == 0) {
    std::printf("%s: ok\n", name);
    return 0;
  }
  std::fprintf(stderr, "%s: %d failures\n", name, failures());
  return 1;
}

}  // namespace sbr_test

#define EXPECT(condition) sbr_test::expect((condition), #condition, __FILE__, __LINE__)
