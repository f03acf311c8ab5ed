--- Drafters by name, and combinations of them.
local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
local support = dofile(here .. "/../support.lua")
local draft = require "mav.draft"
local first = require "mav.draft.first"
local ngram = require "mav.draft.ngram"
local self_draft = require "mav.draft.self"

local model = { config = { layers = 8, vocab = 100 } }

local function fails(spec, text)
  local drafter, err = draft.parse(spec, model)
  assert.is_nil(drafter)
  assert.is_truthy(tostring(err):find(text, 1, true), tostring(err))
end

describe("draft.parse", function()
  it("makes drafters from their names", function()
    assert.are.equal(6, draft.parse("ngram=6", model).n_max)
    assert.are.equal("host", draft.parse("ngram", model).kind)
    assert.are.equal("suffix", draft.parse("suffix", model).name)
    local d = draft.parse("self=3", model)
    assert.are.equal("device", d.kind)
    assert.are.same({ 1, 4, 7 }, d:choose(8))
    local none, err = draft.parse("none", model)
    assert.is_nil(none)
    assert.is_nil(err)
  end)

  it("combines a list in its order", function()
    local d = draft.parse("suffix,ngram=3,self=2", model)
    assert.are.equal("first", d.kind)
    assert.are.equal("suffix+ngram+self", d.name)
    assert.are.equal(2, #d.hosts)
    assert.are.equal(3, d.hosts[2].n_max)
    assert.are.equal("self", d.device.name)
    assert.are.equal("first of suffix (matches of up to 12 tokens, 2 times as many drafts), ngram (2 to 3 tokens), "
      .. "self (one layer in 2)", tostring(d))
  end)

  it("says what is wrong", function()
    fails("medusa", "'medusa' is not a drafter; none, ngram[=N], suffix, self=N, model=DIR, eagle3=DIR, FILE.lua are, and lists "
      .. "with commas")
    fails("", "'' is not a drafter")
    fails("ngram,", "'' is not a drafter")
    fails("none,ngram", "none stands alone")
    fails("ngram,none", "none stands alone")
    fails("ngram=x", "ngram=x: an integer from 1 to 64 is allowed")
    fails("ngram=0", "ngram=0: an integer from 1 to 64 is allowed")
    fails("suffix=3", "suffix takes no value")
    fails("self", "self needs a number")
    fails("eagle3", "eagle3 needs a directory: eagle3=DIR")
    fails("model=", "model needs a directory: model=DIR")
    fails("self=2,ngram", "ngram can never draft: self before it always does")
    fails("/nowhere/x.lua", "/nowhere/x.lua")
  end)

  it("wants the model that it drafts for", function()
    for _, name in ipairs { "eagle3", "model" } do
      local ok, err = pcall(require("mav.draft." .. name).load, "/nowhere")
      assert.is_false(ok)
      assert.is_truthy(err:find(("draft.%s: load(dir, model): the model is missing"):format(name), 1, true), err)
    end
  end)

  it("takes what a file returns: a drafter, a strategy that has one, a function that makes either", function()
    local dir <close> = support.directory()
    local path = dir.path .. "/mine.lua"
    local function parsed(text, spec)
      support.write(path, text)
      return draft.parse(spec or path, model)
    end
    assert.are.equal("ngram", parsed("return require 'mav.draft.ngram' { n_max = 5 }").name)
    assert.are.equal("suffix", parsed("return { draft = require 'mav.draft.suffix' {}, policy = 3 }").name)
    assert.are.equal("self", parsed("return function(model) assert(model.config) return require 'mav.draft.self'(2) end").name)
    assert.are.equal("self", parsed("return function(model) return { draft = require 'mav.draft.self'(2) } end").name)
    local own = parsed "return { draft = function(ids, length, k, out) out[1] = 7 return 1 end }"
    assert.are.same({ "mine", "host" }, { own.name, own.kind })
    local out = {}
    assert.are.equal(1, own:start {}:propose({ 1 }, 1, 4, out))
    assert.are.equal(7, out[1])
    assert.are.equal("ngram+mine", parsed("return { draft = function() return 0 end }", "ngram," .. path).name)
    local before = _G.arg
    _G.arg = { "of the command" }
    assert.are.equal("ngram", parsed("assert(not arg) return require 'mav.draft.ngram' {}").name)
    assert.are.same({ "of the command" }, _G.arg)
    _G.arg = before
    for text, wrong in pairs { [""] = "mine.lua returned nothing (a program is run by: mav ", ["return 5"] = "returned a number",
      ["return {}"] = "neither kind", ["return { policy = 3 }"] = "neither kind", ["return function() end"] = "returned nothing",
      ["return require 'mav.draft.ngram'"] = "call it", ["return { draft = require 'mav.draft.ngram' }"] = "call it, require",
      ["x = = 1"] = "mine.lua:1: unexpected symbol", ["error 'lost'"] = "mine.lua:1: lost" } do
      support.write(path, text)
      fails(path, wrong)
    end
  end)
end)

describe("draft.first", function()
  it("takes drafters, names and functions", function()
    local d = first { "ngram", function() return 0 end, self_draft { stop_at = 2 } }
    assert.are.equal("ngram+function+self", d.name)
    assert.are.equal(0, d.hosts[2]:start {}:propose({}, 0, 1, {}))
    assert.is_nil(first({ ngram() }).device)
    assert.has_error(function() first { "medusa" } end,
      "draft.first: entry 1 is \"medusa\"; a drafter, a function, \"ngram\" or \"suffix\" is allowed")
    assert.has_error(function() first {} end, "draft.first: no drafters given")
  end)
end)

describe("draft.self", function()
  it("chooses layers", function()
    assert.are.same({ 1, 3, 5, 7 }, self_draft(2):choose(8))
    assert.are.same({ 1, 2, 3 }, self_draft { stop_at = 3 }:choose(8))
    assert.are.same({ 2, 8 }, self_draft { layers = { 2, 8 } }:choose(8))
    assert.has_error(function() self_draft { layers = { 2, 9 } }:choose(8) end, "draft.self: layer 9 of a model with 8")
    assert.has_error(function() self_draft { stop_at = 9 }:choose(8) end, "draft.self: layer 9 of a model with 8")
  end)

  it("checks its options", function()
    assert.has_error(function() self_draft(0) end, "draft.self: every is 0; an integer from 1 on is allowed")
    assert.has_error(function() self_draft {} end, "draft.self: one of every, layers and stop_at is needed")
    assert.has_error(function() self_draft { every = 2, stop_at = 3 } end, "draft.self: one of every, layers and stop_at is needed")
    assert.has_error(function() self_draft { layers = { 3, 2 } } end,
      "draft.self: layers[2] is 2; ascending numbers from 1 on are allowed")
    assert.has_error(function() self_draft { step = 2 } end, "draft.self: unknown option 'step'")
  end)
end)
