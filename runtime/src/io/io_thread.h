#pragma once

namespace sbr {

// The calling thread serves reads: it works for microseconds and then sleeps for long. Where the scheduler knows of
// such threads (Linux 6.12) it then runs as soon as it wakes, rather than when a computing thread's turn of 3 ms is
// over.
void prefer_short_turns();

}  // namespace sbr
