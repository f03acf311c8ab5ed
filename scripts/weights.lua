--- mav weights: the tools in weights-tools/, one a file: mav.weights_tools.<name>, { summary =, run = function(arg) }.
return require("mav.host").group("weights", "weights_tools", "makes, checks and measures packs of weights")
