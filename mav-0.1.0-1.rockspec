rockspec_format = "3.0"
package = "mav"
version = "0.1.0-1"
source = { url = "git+file://." }
description = {
  summary = "Low-latency inference of Llama 4 models, scripted in Lua",
  detailed = [[
Tensors, captured graphs, a paged KV cache and fused ops for AVX2 and AVX-512 as a Lua module. The forward pass, the sampling and
the session are Lua scripts, carried inside the module. Needs PCRE2, cJSON, lz4, xxHash and libedit with their headers.]],
  license = "Apache-2.0",
  labels = { "llm", "inference", "tensor" },
}
supported_platforms = { "linux" }
dependencies = { "lua >= 5.4, < 5.5", "argparse" }
external_dependencies = {
  PCRE2 = { header = "pcre2.h" },
  CJSON = { header = "cjson/cJSON.h" },
  LZ4 = { header = "lz4.h" },
  XXHASH = { header = "xxhash.h" },
}
build = {
  type = "cmake",
  variables = {
    CMAKE_BUILD_TYPE = "Release",
    CMAKE_INSTALL_PREFIX = "$(PREFIX)",
    MAV_MODULE_DIR = "$(LIBDIR)",
    CMAKE_INSTALL_LIBDIR = "c", -- libmav for C programs: not among the Lua modules
    MAV_EMBED_SCRIPTS = "ON",
    MAV_TESTS = "OFF",
    MAV_WERROR = "OFF",
  },
}
