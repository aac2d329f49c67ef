#include "io/io_thread.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace sbr {
namespace {

// struct sched_attr of the kernel, first version.
struct SchedulerAttributes {
  uint32_t size;
  uint32_t policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime;
  uint64_t deadline;
  uint64_t period;
};
static_assert(sizeof(SchedulerAttributes) == 48, "the kernel's");

constexpr uint64_t kTurnNs = 100000;  // the shortest that the kernel grants

}  // namespace

void prefer_short_turns() {
#if defined(SYS_sched_getattr) && defined(SYS_sched_setattr)
  SchedulerAttributes attributes = {};
  if (::syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) return;
  if (attributes.policy != 0) return;  // not SCHED_OTHER: somebody knows better
  attributes.size = sizeof attributes;
  attributes.runtime = kTurnNs;
  (void)::syscall(SYS_sched_setattr, 0, &attributes, 0);  // a hint: older kernels ignore or refuse it
#endif
}

}  // namespace sbr
