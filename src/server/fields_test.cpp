#include "server/fields.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace qw::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Task {
  std::string text;
  int64_t number = 0;
  bool flag = false;
};

const FieldTable<Task>& table() {
  static const FieldTable<Task> fields = {
      string_field<Task>("text", &Task::text),
      integer_field<Task>("options.number", &Task::number, 1),
      flag_field<Task>("options.deep.flag", &Task::flag),
      refused<Task>("options.no", "there is none"),
      refused<Task>("neutral", "there is another", -1),
      ignored<Task>("shrug", "it changes nothing"),
      ignored<Task>("always", "it is always on", true),
  };
  return fields;
}

std::vector<std::string> read(const char* json, Task& task, bool strict = false) {
  return read_fields(Json::parse(json), table(), task, strict);
}

std::string error_of(const char* json, bool strict = false) {
  Task task;
  try {
    read(json, task, strict);
  } catch (const RequestError& error) {
    return error.field() + "|" + error.message();
  }
  return "";
}

TEST(Fields, ReadsMembersOfMembers) {
  Task task;
  const auto warnings =
      read(R"({"text": "a", "options": {"number": 3, "deep": {"flag": true}}})", task);
  EXPECT_THAT(warnings, ElementsAre());
  EXPECT_EQ(task.text, "a");
  EXPECT_EQ(task.number, 3);
  EXPECT_TRUE(task.flag);
  EXPECT_THAT(read(R"({"text": null, "options": null})", task), ElementsAre());
}

TEST(Fields, NamesThemWhole) {
  Task task;
  EXPECT_THAT(read(R"({"options": {"x": 1, "deep": {"y": 1}}, "number": 1})", task),
              ElementsAre(HasSubstr("options.x: ignored (unknown"), HasSubstr("options.deep.y"),
                          HasSubstr("number: ignored (unknown")));
  EXPECT_THAT(error_of(R"({"options": {"deep": {"y": 1}}})", true), HasSubstr("options.deep.y|"));
  EXPECT_THAT(error_of(R"({"options": {"number": 0}})"), HasSubstr("options.number|"));
  EXPECT_THAT(error_of(R"({"options": {"no": 1}})"), HasSubstr("options.no|"));
  EXPECT_THAT(error_of(R"({"options": [1]})"), HasSubstr("options|"));
  EXPECT_THAT(error_of("[1]"), HasSubstr("body|"));
}

TEST(Fields, AskForNothingByTheirNeutralValue) {
  Task task;
  EXPECT_THAT(read(R"({"neutral": -1, "shrug": 0, "always": true, "options": {"no": []}})", task),
              ElementsAre());
  EXPECT_THAT(error_of(R"({"neutral": 0})"), HasSubstr("neutral|"));
  EXPECT_THAT(read(R"({"shrug": 1, "always": false})", task),
              ElementsAre("shrug: ignored (it changes nothing)", HasSubstr("always")));
}

}  // namespace
}  // namespace qw::server
