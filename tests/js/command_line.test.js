import assert from "node:assert/strict";
import test from "node:test";

import { commandLine, quote } from "../../audioldm_site/static/audioldm_site/js/command_line.js";

const DEFAULTS = { seed: 0, learning_rate: 0.0001, use_ema: false, sampler: "ddim", validation_prompts: [] };

test("only what differs from the defaults is said", () => {
  const values = { seed: "0", learning_rate: "3e-4", use_ema: true, sampler: "ddim", validation_prompts: "a bell\n\n it's rain " };
  assert.equal(
    commandLine("finetune", [["--dataset", "Foley doors"], ["--checkpoint", "starter"]], values, DEFAULTS),
    `./manage.py finetune --dataset 'Foley doors' --checkpoint starter --learning_rate 3e-4 --use_ema true --validation_prompts 'a bell' --validation_prompts 'it'"'"'s rain'`,
  );
});

test("the same number written differently is the default", () => {
  assert.equal(commandLine("finetune", [], { learning_rate: "1e-4" }, DEFAULTS), "./manage.py finetune");
});

test("a prompt is given by position", () => {
  assert.equal(commandLine("generate", [["prompt", "a bell"]], {}, {}), "./manage.py generate 'a bell'");
});

test("words are quoted for a shell", () => {
  assert.equal(quote(""), "''");
  assert.equal(quote("$(rm -rf)"), "'$(rm -rf)'");
  assert.equal(quote("dpmsolver++"), "dpmsolver++");
});
