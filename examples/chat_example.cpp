// A conversation with streaming: chat_example MODEL [QUESTION...]
//
// Loads a checkpoint, keeps the history, prints the answer as it is made.
#include <iostream>
#include <string>
#include <vector>

#include "qianwen/qianwen.h"

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: chat_example MODEL [QUESTION...]\n";
    return 2;
  }
  try {
    auto model = qw::LanguageModel::load(argv[1]);
    std::vector<std::string> questions(argv + 2, argv + argc);
    if (questions.empty()) questions = {"Hello!", "What is 347 + 285?"};

    std::vector<qw::Message> history;
    qw::GenerateSettings settings;
    settings.do_sample = false;
    settings.max_new_tokens = 128;
    for (const std::string& question : questions) {
      history.push_back({"user", question});
      std::cout << "> " << question << '\n';
      const qw::Generation answer = model.chat(history, settings, [](std::string_view piece) {
        std::cout << piece << std::flush;
        return true;  // false would cancel
      });
      std::cout << '\n';
      history.push_back({"assistant", answer.text});
    }
  } catch (const qw::Error& error) {
    std::cerr << "error: " << error.message() << '\n';
    return qw::exit_code(error.kind());
  }
}
