// What the machine can do: the limits that speeds are held against. See sbr.h.
#pragma once

#include <string>

#include "sbr/sbr.h"

namespace sbr {

// Errors of all: ARGUMENT naming the option, MEMORY, IO; of probe_reads() also those of Bundle and Reader.
sbr_probe_result probe_read(const sbr_probe_options& options);
sbr_probe_result probe_gather(const sbr_probe_options& options);
sbr_probe_result probe_storage(const std::string& path, const sbr_probe_options& options);
sbr_probe_result probe_reads(const std::string& path, const sbr_probe_options& options);

}  // namespace sbr
