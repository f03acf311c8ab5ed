-- luacheck lua scripts examples tests
std = "lua54"
max_line_length = 140
exclude_files = { "lua/library", "build" } -- annotations for editors, generated: functions without a body
self = false -- a method that does not need its object is still a method
files["**/*_spec.lua"].std = "lua54+busted"
