/* The public header is included first and alone, as C99, and its struct sizes and constants are as every compiler sees
 * them. */
#include <stdio.h>
#include <string.h>

#include "sbr/sbr.h"

int main(void) {
  sbr_error error;
  sbr_isa_info isa;
  if (sbr_abi_version() != SBR_ABI_VERSION) return 1;
  if (sbr_build_info()[0] != '{') return 1;
  if (sizeof(sbr_error) != 1024 || offsetof(sbr_error, message) != 8) return 1;
  if (sbr_isa_count() < 1) return 1;
  memset(&isa, 0, sizeof isa);
  isa.struct_size = sizeof isa;
  memset(&error, 0, sizeof error);
  error.struct_size = sizeof error;
  if (sbr_isa_get(0, &isa, &error) != SBR_OK || isa.isa != SBR_ISA_SCALAR || strcmp(isa.name, "scalar") != 0) return 1;
  puts("test_header: ok");
  return 0;
}
