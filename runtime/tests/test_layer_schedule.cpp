// Which layers stay and which are streamed, for every number of layers and amount of memory.
#include <algorithm>

#include "expect.h"
#include "experts/layer_stream.h"

namespace {

void test_schedule() {
  for (uint32_t n = 1; n <= 48; ++n) {
    for (uint32_t slots = 1; slots <= n + 1; ++slots) {
      const sbr::LayerSchedule s = sbr::make_layer_schedule(n, slots);
      EXPECT(s.n_slots() == std::min(slots, n));
      EXPECT((s.n_buffers == 0) == s.streamed.empty() && s.n_buffers < std::max<size_t>(s.streamed.size(), 1));
      for (size_t i = 0; i < s.streamed.size(); ++i) {
        EXPECT(s.streamed[i] < n && (i == 0 || s.streamed[i] > s.streamed[i - 1]));
        const size_t m = s.streamed.size();  // evenly: every n / m layers, or one more
        if (i > 0) EXPECT(s.streamed[i] - s.streamed[i - 1] <= (n + m - 1) / m);
      }
    }
  }
}

}  // namespace

int main() {
  test_schedule();
  return sbr_test::finish("test_layer_schedule");
}
