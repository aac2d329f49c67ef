// The public header compiles alone as C++17, too.
#include "sbr/sbr.h"

static_assert(sizeof(sbr_error) == 1024, "the header is the same in C and C++");
static_assert(SBR_ISA_AVX512VNNI == 20 && SBR_TYPE_BF16 == 30 && SBR_ERR_INTERNAL == 90, "numbers are pinned");

int main() { return sbr_abi_version() == SBR_ABI_VERSION ? 0 : 1; }
