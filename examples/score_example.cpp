// Which continuation does the model believe more? score_example MODEL PROMPT CONTINUATION...
//
// Sums log p of each continuation's tokens after the prompt.
#include <cstddef>
#include <iostream>
#include <string>
#include <vector>

#include "qianwen/qianwen.h"

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: score_example MODEL PROMPT CONTINUATION...\n";
    return 2;
  }
  try {
    auto model = qw::LanguageModel::load(argv[1]);
    const std::string prompt = argv[2];
    const size_t n_prompt = model.tokenize(prompt).size();
    for (int i = 3; i < argc; ++i) {
      const std::vector<int32_t> ids = model.tokenize(prompt + argv[i]);
      const std::vector<double> logprobs = model.score(ids);
      double sum = 0;
      for (size_t t = n_prompt; t < ids.size(); ++t)
        sum += logprobs[t - 1];
      std::cout << sum << '\t' << argv[i] << '\n';
    }
  } catch (const qw::Error& error) {
    std::cerr << "error: " << error.message() << '\n';
    return qw::exit_code(error.kind());
  }
}
