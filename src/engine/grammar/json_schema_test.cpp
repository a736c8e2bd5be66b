// JSON schemas: for each keyword, instances that must be accepted and texts that must not.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "engine/grammar/grammar.h"

namespace qw {
namespace {

struct SchemaCase {
  const char* schema;
  std::vector<std::string> fits, fails;
};

void check(const std::vector<SchemaCase>& cases) {
  for (const SchemaCase& c : cases) {
    std::shared_ptr<const Grammar> grammar;
    try {
      grammar = Grammar::from_json_schema(c.schema);
    } catch (const Error& error) {
      ADD_FAILURE() << c.schema << ": " << error.message();
      continue;
    }
    for (const std::string& text : c.fits)
      EXPECT_TRUE(grammar->accepts(text)) << c.schema << " " << text;
    for (const std::string& text : c.fails)
      EXPECT_FALSE(grammar->accepts(text)) << c.schema << " " << text;
  }
}

TEST(JsonSchema, Types) {
  check({
      {"true", {"null", "[]", "{\"a\":[1,{}]}", "\"x\"", "-1.5e3"}, {"", "nul", "[1,]", "{a:1}"}},
      {"{}", {"1", "true"}, {"01", "+1", "1.", ".5", "'a'"}},
      {R"({"type":"null"})", {"null"}, {"0", "\"null\""}},
      {R"({"type":"boolean"})", {"true", "false"}, {"True", "1", "null"}},
      {R"({"type":"integer"})",
       {"0", "-12", "123456789012345678901234567890"},
       {"1.5", "-", "-0", "1e2", "01"}},
      {R"({"type":"number"})", {"0", "-1.50", "2e10", "1E-05"}, {"1e", "-.5", "1.e3", "NaN"}},
      {R"({"type":"string"})",
       {R"("")", R"("é✿😀")", R"("\"\\\/\b\f\n\r\t\u00e9\uD83D\ude00")"},
       {R"("\x")", "\"a\nb\"", R"("\ud83d")", R"("\udE00\ud83d")", "\"a", "\"\x01\""}},
      {R"({"type":["string","null"]})", {"null", "\"null\""}, {"1"}},
      {R"({"type":"integer","nullable":true})", {"null", "4"}, {"\"4\""}},
      {R"({"type":"array"})", {"[]", "[1, [null],{}]", "[\n  1,\n  2\n]"}, {"[1 ,2]", "[,]"}},
      {R"({"type":"object"})",
       {"{}", R"({"a": 1, "b":{"c":[]}})", "{\n  \"a\": 1\n}"},
       {R"({"a"})", R"({"a":1,})", R"({1:1})"}},
  });
}

TEST(JsonSchema, ValuesThatAreListed) {
  check({
      {R"({"enum":["a","é\"",1,null,[1,"b"],{"k":true}]})",
       {"\"a\"", "\"é\\\"\"", "1", "null", "[1,\"b\"]", "[1, \"b\"]", "{\"k\": true}"},
       {"\"b\"", "[1]", "{}"}},
      {R"({"type":"string","enum":["a",1,"b"]})", {"\"a\"", "\"b\""}, {"1"}},
      {R"({"enum":["a","bb","ccc"],"minLength":2,"pattern":"^b|c"})",
       {"\"bb\"", "\"ccc\""},
       {"\"a\""}},
      {R"({"enum":[1,2.5,7,10],"minimum":2,"exclusiveMaximum":10})", {"2.5", "7"}, {"1", "10"}},
      {R"({"enum":[1,2.5],"type":"integer"})", {"1"}, {"2.5"}},
      {R"({"const":{"a":[]}})", {"{\"a\":[]}"}, {"{\"a\":{}}"}},
      {R"({"allOf":[{"enum":[1,2,3]},{"enum":[3.0,2,"x"]}]})", {"2", "3"}, {"1", "\"x\""}},
      {R"({"const":"\u0001\n"})", {R"("\u0001\n")"}, {"\"\n\""}},
  });
}

TEST(JsonSchema, Strings) {
  check({
      {R"({"type":"string","minLength":2,"maxLength":3})",
       {"\"ab\"", "\"✿é😀\"", R"("\u0041\"")", R"("\ud83d\ude00x")"},
       {"\"a\"", "\"abcd\"", R"("\ud83d\ude00")"}},
      {R"({"type":"string","maxLength":0})", {"\"\""}, {"\"a\""}},
      {R"({"type":"string","pattern":"^[a-z]+\\d$"})",
       {"\"ab1\""},
       {"\"ab\"", "\"1\"", "\"ab1 \""}},
      {R"({"type":"string","pattern":"b"})", {"\"abc\"", "\"b\""}, {"\"ac\""}},
      {R"({"type":"string","pattern":"^[\"\\\\\n]+$"})", {R"("\"\\\n")"}, {R"("""")", R"("a")"}},
      {R"({"type":"string","pattern":"^a*$","minLength":2,"maxLength":4})",
       {"\"aa\"", "\"aaaa\""},
       {"\"a\"", "\"aaaaa\"", "\"ab\""}},
      {R"({"type":"string","pattern":"^a{2}$","maxLength":9})", {"\"aa\""}, {"\"a\""}},
      {R"({"type":"string","allOf":[{"pattern":"^a"},{"pattern":"z$"}]})",
       {"\"az\"", "\"abcz\""},
       {"\"a\"", "\"ba z\""}},
      {R"({"type":"string","maxLength":10000})",
       {fmt::format("\"{}\"", std::string(10000, 'x'))},
       {fmt::format("\"{}\"", std::string(10001, 'x'))}},
  });
}

TEST(JsonSchema, Formats) {
  check({
      {R"({"type":"string","format":"date"})",
       {"\"2024-02-29\"", "\"2000-02-29\"", "\"1999-12-31\""},
       {"\"2023-02-29\"", "\"1900-02-29\"", "\"2024-04-31\"", "\"2024-13-01\"", "\"24-01-01\""}},
      {R"({"type":"string","format":"time"})",
       {"\"23:59:59Z\"", "\"00:00:00.123+08:30\""},
       {"\"24:00:00Z\"", "\"12:00:00\"", "\"12:60:00Z\""}},
      {R"({"type":"string","format":"date-time"})",
       {"\"2024-05-06T07:08:09Z\""},
       {"\"2024-05-06 07:08:09Z\"", "\"2024-05-06\""}},
      {R"({"type":"string","format":"duration"})",
       {"\"P1Y2M3D\"", "\"PT1H\"", "\"P4W\"", "\"P1DT12H30M\""},
       {"\"P\"", "\"PT\"", "\"P1Y2D\"", "\"1D\""}},
      {R"({"type":"string","format":"uuid"})",
       {"\"2EB8AA08-aa98-11ea-b4aa-73b441d16380\""},
       {"\"2eb8aa08aa9811eab4aa73b441d16380\""}},
      {R"({"type":"string","format":"email"})",
       {"\"joe.bloggs@example.com\"", "\"a+b@c\""},
       {"\"a@\"", "\".a@b.c\"", "\"a..b@c\""}},
      {R"({"type":"string","format":"hostname"})",
       {"\"www.example.com\"", "\"a\""},
       {"\"-a.com\"", "\"a-.b\"", "\"a..b\"", "\"\""}},
      {R"({"type":"string","format":"ipv4"})",
       {"\"192.168.0.255\""},
       {"\"256.1.1.1\"", "\"1.2.3\"", "\"01.2.3.4\""}},
      {R"({"type":"string","format":"ipv6"})",
       {"\"::1\"", "\"::\"", "\"1:2:3:4:5:6:7:8\"", "\"fe80::1:2\"", "\"1::8\"",
        "\"::ffff:192.0.2.1\"", "\"1:2:3:4:5:6:7::\""},
       {"\"1:2:3:4:5:6:7\"", "\"1::2::3\"", "\"12345::\"", "\"1:2:3:4:5:6:7:8:9\"", "\":1\""}},
      {R"({"type":"string","format":"uri"})",
       {"\"https://user@example.com:80/a/b?c=d#e\"", "\"mailto:a@b\"", "\"urn:x:y\""},
       {"\"/a\"", "\"a b:c\"", "\"http://a/%zz\"", "\"\""}},
      {R"({"type":"string","format":"uri-reference"})",
       {"\"/a?b\"", "\"http://a\"", "\"\"", "\"a/b:c\""},
       {"\"a b\"", "\"1:a\""}},
      {R"({"type":"string","format":"json-pointer"})",
       {"\"\"", "\"/a~0b/~1\""},
       {"\"a\"", "\"/~2\""}},
      {R"({"type":"integer","format":"int32"})",
       {"2147483647", "-2147483648"},
       {"2147483648", "-2147483649"}},
      {R"({"type":"number","format":"double"})", {"1.5e3"}, {}},
  });
}

TEST(JsonSchema, Numbers) {
  check({
      {R"({"type":"integer","minimum":-5,"maximum":120})",
       {"-5", "-1", "0", "7", "99", "100", "120"},
       {"-6", "121", "200", "-10", "007", "-0"}},
      {R"({"type":"integer","exclusiveMinimum":9,"exclusiveMaximum":1000})",
       {"10", "999"},
       {"9", "1000"}},
      {R"({"type":"integer","minimum":1.5,"maximum":3.5})", {"2", "3"}, {"1", "4"}},
      {R"({"type":"integer","minimum":98})", {"98", "99", "100", "12345"}, {"97", "0", "-98"}},
      {R"({"type":"integer","maximum":-98})", {"-98", "-100"}, {"-97", "98", "0"}},
      {R"({"type":"integer","minimum":0})", {"0", "10"}, {"-1"}},
      {R"({"type":"number","minimum":0,"maximum":1})",
       {"0", "0.0", "0.5", "1", "1.000", "0.999"},
       {"1.01", "-0.1", "2", "1e0"}},
      {R"({"type":"number","exclusiveMinimum":0,"exclusiveMaximum":1})",
       {"0.001", "0.999"},
       {"0", "0.00", "1", "1.0"}},
      {R"({"type":"number","minimum":-1.25,"maximum":2.5})",
       {"-1.25", "-1.2", "-1", "-0.99", "2.50", "2.4999", "0"},
       {"-1.26", "-1.2501", "2.51", "-2", "3"}},
      {R"({"type":"number","exclusiveMinimum":1.25})",
       {"1.2501", "1.3", "2", "10"},
       {"1.25", "1.250", "1.2", "1"}},
      {R"({"type":"number","maximum":1e3})", {"1000", "999.9", "-5"}, {"1000.1", "1001"}},
      {R"({"type":["integer","null"],"minimum":3,"maximum":3})", {"3", "null"}, {"2"}},
  });
}

TEST(JsonSchema, Objects) {
  check({
      {R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"string"}},"required":["a"],"additionalProperties":false})",
       {R"({"a":1})", R"({"a":1,"b":"x"})", R"({"a": 1, "b": "x"})",
        "{\n    \"a\": 1,\n    \"b\": \"\"\n}"},
       {"{}", R"({"b":"x"})", R"({"a":1,"c":2})", R"({"b":"x","a":1})", R"({"a":1,"a":1})",
        R"({"a":"1"})"}},
      {R"({"type":"object","properties":{"a":{},"b":{},"c":{}},"required":["b"],"additionalProperties":false})",
       {R"({"b":1})", R"({"a":1,"b":1,"c":1})", R"({"b":1,"c":1})"},
       {R"({"a":1,"c":1})", R"({,"b":1})"}},
      {R"({"properties":{"a":{"type":"integer"}},"type":"object"})",
       {"{}", R"({"zz":"free"})", R"({"a":1,"aa":null})"},
       {R"({"a":"no"})", R"({"aa":1,"a":"no"})", R"({"\u0061":"no"})"}},
      {R"({"type":"object","additionalProperties":{"type":"boolean"}})",
       {"{}", R"({"x":true,"y":false})"},
       {R"({"x":1})"}},
      {R"({"type":"object","patternProperties":{"^s_":{"type":"string"},"^i":{"type":"integer"}},"additionalProperties":false})",
       {R"({"s_a":"x","i":1,"s_b":"y"})", "{}"},
       {R"({"s_a":1})", R"({"x":1})", R"({"i":"1"})"}},
      {R"({"type":"object","properties":{"s1":{"minLength":2}},"patternProperties":{"^s":{"type":"string"}},"additionalProperties":false})",
       {R"({"s1":"ab","s2":""})"},
       {R"({"s1":"a"})", R"({"s1":12})"}},
      {R"({"type":"object","propertyNames":{"pattern":"^[a-z]+$"},"additionalProperties":{"type":"integer"}})",
       {"{}", R"({"ab":1})"},
       {R"({"A":1})", R"({"":1})"}},
      {R"({"type":"object","propertyNames":{"enum":["x","y"]}})",
       {R"({"x":1,"y":2})"},
       {R"({"z":1})"}},
      {R"({"type":"object","required":["k"]})",
       {R"({"k":1})", R"({"k":1,"l":2})"},
       {"{}", R"({"l":2})"}},
      {R"({"type":"object","required":["k"],"additionalProperties":{"type":"integer"}})",
       {R"({"k":1})"},
       {R"({"k":"x"})"}},
      {R"({"type":"object","properties":{"a":{},"b":{},"c":{}},"additionalProperties":false,"minProperties":2})",
       {R"({"a":1,"c":1})", R"({"a":1,"b":1,"c":1})"},
       {"{}", R"({"a":1})"}},
      {R"({"type":"object","properties":{"a":{},"b":{},"c":{}},"additionalProperties":false,"maxProperties":1})",
       {"{}", R"({"c":1})"},
       {R"({"a":1,"c":1})"}},
      {R"({"type":"object","minProperties":1,"maxProperties":2})",
       {R"({"c":1})", R"({"c":1,"d":1})"},
       {"{}", R"({"a":1,"b":1,"c":1})"}},
      {R"({"type":"object","properties":{"no":false,"a":{}},"additionalProperties":false})",
       {"{}", R"({"a":1})"},
       {R"({"no":1})"}},
      {R"({"type":"object","properties":{"é\"k":{"const":1}},"required":["é\"k"]})",
       {R"({"é\"k":1})"},
       {R"({"ék":1})"}},
  });
}

TEST(JsonSchema, Arrays) {
  check({
      {R"({"type":"array","items":{"type":"integer"}})",
       {"[]", "[1]", "[1, 2,3]"},
       {"[\"a\"]", "[1,]"}},
      {R"({"type":"array","items":{"type":"integer"},"minItems":2,"maxItems":3})",
       {"[1,2]", "[1,2,3]"},
       {"[]", "[1]", "[1,2,3,4]"}},
      {R"({"type":"array","maxItems":0})", {"[]"}, {"[1]"}},
      {R"({"type":"array","prefixItems":[{"type":"string"},{"type":"integer"}],"items":false})",
       {"[]", "[\"a\"]", "[\"a\",1]"},
       {"[1]", "[\"a\",1,2]"}},
      {R"({"type":"array","prefixItems":[{"type":"string"}],"items":{"type":"integer"},"minItems":1})",
       {"[\"a\"]", "[\"a\",1,2]"},
       {"[]", "[\"a\",\"b\"]"}},
      {R"({"type":"array","items":[{"type":"string"}],"additionalItems":false})",
       {"[]", "[\"a\"]"},
       {"[\"a\",1]"}},
      {R"({"type":"array","prefixItems":[{"const":1},{"const":2},{"const":3}],"minItems":2,"maxItems":2})",
       {"[1,2]"},
       {"[1]", "[1,2,3]"}},
      {R"({"type":"array","items":{"type":"array","items":{"type":"number"},"minItems":2,"maxItems":2}})",
       {"[[1,2],[3.5,4]]"},
       {"[[1]]"}},
      {R"({"type":"array","items":{"type":"integer"},"minItems":1000,"maxItems":100000})",
       {},
       {"[1,2]"}},
      {R"({"type":"array","uniqueItems":true,"maxItems":1})", {"[]", "[1]"}, {"[1,1]"}},
      {R"({"type":"array","uniqueItems":false,"items":{"const":1}})", {"[1,1]"}, {}},
  });
}

TEST(JsonSchema, Combinations) {
  check({
      {R"({"anyOf":[{"type":"integer"},{"type":"string","maxLength":1},{"type":"string","minLength":3}]})",
       {"1", "\"a\"", "\"abc\""},
       {"\"ab\"", "null"}},
      {R"({"type":"string","anyOf":[{"minLength":3},{"const":"x"},{"const":1}]})",
       {"\"abc\"", "\"x\""},
       {"1", "\"ab\""}},
      {R"({"oneOf":[{"type":"integer"},{"type":"string"},{"type":"null"}]})",
       {"1", "\"\"", "null"},
       {"1.5"}},
      {R"({"oneOf":[{"type":"integer","maximum":5},{"type":"integer","minimum":6}]})",
       {"5", "6"},
       {"\"\""}},
      {R"({"oneOf":[{"type":"object","properties":{"kind":{"const":"a"},"x":{"type":"integer"}},"required":["kind","x"]},{"type":"object","properties":{"kind":{"const":"b"},"y":{}},"required":["kind"]}]})",
       {R"({"kind":"a","x":1})", R"({"kind":"b"})", R"({"kind":"b","x":"other"})"},
       {R"({"kind":"a"})", R"({"kind":"c"})"}},
      {R"({"allOf":[{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]},{"properties":{"a":{"minimum":3},"b":{"type":"null"}}}]})",
       {R"({"a":3})", R"({"a":4,"b":null})"},
       {R"({"a":2})", R"({"b":null})", R"({"a":3,"b":1})"}},
      {R"({"allOf":[{"type":["string","integer"]},{"type":["string","null"]}]})",
       {"\"\""},
       {"1", "null"}},
      {R"({"type":"integer","allOf":[{"anyOf":[{"minimum":10},{"maximum":-10}]},{"anyOf":[{"const":11},{"const":-11},{"const":0}]}]})",
       {"11", "-11"},
       {"0", "10"}},
      {R"({"type":"array","allOf":[{"items":{"type":"integer"}},{"items":{"minimum":0},"prefixItems":[{"const":5}]}]})",
       {"[]", "[5,0]"},
       {"[1]", "[5,-1]"}},
      {R"({"anyOf":[false,{"const":1}]})", {"1"}, {"2"}},
  });
}

TEST(JsonSchema, References) {
  check({
      {R"({"$defs":{"n":{"type":"integer"}},"type":"array","items":{"$ref":"#/$defs/n"}})",
       {"[1]"},
       {"[\"\"]"}},
      {R"({"definitions":{"a/b~c d":{"type":"integer"}},"$ref":"#/definitions/a~1b~0c%20d"})",
       {"1"},
       {"\"\""}},
      {R"({"type":"object","properties":{"v":{"type":"integer"},"next":{"anyOf":[{"$ref":"#"},{"type":"null"}]}},"required":["v","next"],"additionalProperties":false})",
       {R"({"v":1,"next":null})", R"({"v":1,"next":{"v":2,"next":null}})"},
       {R"({"v":1})", R"({"v":1,"next":{"v":2}})"}},
      {R"({"$ref":"#/$defs/tree","$defs":{"tree":{"type":"object","properties":{"c":{"type":"array","items":{"$ref":"#/$defs/tree"}}},"additionalProperties":false}}})",
       {"{}", R"({"c":[{},{"c":[{"c":[]}]}]})"},
       {R"({"c":[1]})"}},
      {R"({"$defs":{"p":{"$anchor":"pos","type":"integer","minimum":1}},"$ref":"#pos","maximum":5})",
       {"1", "5"},
       {"0", "6"}},
      {R"({"$id":"https://example.com/s","$ref":"https://example.com/s#/$defs/x","$defs":{"x":{"const":1}}})",
       {"1"},
       {"2"}},
      {R"({"title":"t","description":"d","default":0,"examples":[1],"$comment":"c","$schema":"x","deprecated":true,"x-any":1,"type":"null"})",
       {"null"},
       {"0"}},
  });
}

TEST(JsonSchema, RefusedByName) {
  struct Refused {
    const char* schema;
    ErrorKind kind;
    const char* part;
  };
  constexpr auto kNot = ErrorKind::kUnsupported;
  constexpr auto kBad = ErrorKind::kInvalidArgument;
  const Refused cases[] = {
      {R"({"not":{}})", kNot,
       "not: expected a keyword that is supported, got one that is not (at #)"},
      {R"({"properties":{"a/b":{"contains":{}}}})", kNot,
       "contains: expected a keyword that is supported, got one that is not (at "
       "#/properties/a~1b)"},
      {R"({"items":{"anyOf":[{"multipleOf":2}]}})", kNot, "(at #/items/anyOf/0)"},
      {R"({"if":{}})", kNot, "if:"},
      {R"({"type":"array","uniqueItems":true})", kNot, "uniqueItems"},
      {R"({"unevaluatedProperties":false})", kNot, "unevaluatedProperties"},
      {R"({"dependentRequired":{}})", kNot, "dependentRequired"},
      {R"({"type":"string","format":"idn-email"})", kNot, "got idn-email (at #)"},
      {R"j({"type":"string","pattern":"a(?=b)"})j", kNot, "(pattern at #)"},
      {R"({"oneOf":[{"type":"integer"},{"type":"number"}]})", kNot,
       "oneOf: expected alternatives that exclude each other"},
      {R"({"oneOf":[{"type":"object"},{"required":["a"],"type":"object"}]})", kNot,
       "got none of these for 0 and 1"},
      {R"({"type":"object","minProperties":2})", kNot, "minProperties"},
      {R"({"$ref":"other.json"})", kNot, "within the schema"},
      {R"({"$ref":"#"})", kNot, "circle"},
      {R"({"anyOf":[{"$ref":"#"},{"type":"null"}]})", kNot, "circle"},
      {R"({"$dynamicRef":"#a"})", kNot, "$dynamicRef"},
      {R"({"enum":[{"a":1}],"properties":{"a":{}}})", kNot, "beside an enum or const"},
      {R"({"$ref":"#/$defs/x"})", kBad, "something that is there"},
      {R"({"type":"strin"})", kBad, "type: expected null, boolean"},
      {R"({"type":"string","minLength":-1})", kBad, "minLength: expected a number of at least 0"},
      {R"({"properties":[]})", kBad, "properties: expected an object of schemas"},
      {R"({"anyOf":[]})", kBad, "anyOf: expected a list of schemas"},
      {R"({"required":["a",1]})", kBad, "required"},
      {R"({"type":)", kBad, "expected JSON"},
      {"[]", kBad, "expected an object or a boolean"},
      {"false", kBad, "no text can fit"},
      {R"({"type":"string","minLength":3,"maxLength":2})", kBad, "no text can fit"},
      {R"({"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]})", kBad,
       "no text can fit"},
  };
  for (const Refused& c : cases) {
    try {
      Grammar::from_json_schema(c.schema);
      ADD_FAILURE() << "no error: " << c.schema;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), c.kind) << c.schema << ": " << error.message();
      EXPECT_NE(error.message().find(c.part), std::string::npos)
          << c.schema << ": " << error.message();
    }
  }
}

TEST(JsonSchema, WhiteSpaceByPattern) {
  const auto with = [](std::string pattern) { return JsonFormat{std::move(pattern)}; };
  const auto compact = Grammar::from_json_schema(R"({"type":"array"})", with(""));
  EXPECT_TRUE(compact->accepts("[1,[2]]"));
  EXPECT_FALSE(compact->accepts("[1, 2]"));
  const auto loose = Grammar::from_json_schema(R"({"type":"object"})", with("[ \\n\\t]{0,3}"));
  EXPECT_TRUE(loose->accepts("{ \"a\" :\n\n1 ,\t\"b\":[ ] }"));
  EXPECT_FALSE(loose->accepts("{    \"a\":1}"));
  EXPECT_THROW(Grammar::json_value(with("x")), Error);
}

TEST(JsonSchema, LongListsOfValues) {
  nlohmann::json values = nlohmann::json::array();
  for (int i = 0; i < 5000; ++i)
    values.push_back(i % 2 == 0 ? nlohmann::json(i) : nlohmann::json(fmt::format("v{}", i)));
  for (int i = 0; i < 5000; ++i)
    values.push_back(nlohmann::json(static_cast<double>(i)));  // half of them stand twice
  const auto grammar = Grammar::from_json_schema(nlohmann::json{{"enum", values}}.dump());
  EXPECT_TRUE(grammar->accepts("4998"));
  EXPECT_TRUE(grammar->accepts("\"v4999\""));
  EXPECT_FALSE(grammar->accepts("\"v4998\""));
  EXPECT_FALSE(grammar->accepts("5000"));
}

// A list of values is the automaton of its words, not a path for each.
TEST(JsonSchema, TakesEnumsOfManyTexts) {
  nlohmann::ordered_json schema = {{"enum", nlohmann::ordered_json::array()}};
  const auto value = [](int i) { return fmt::format("item \"{:05}\" of the catalogue", i); };
  for (int i = 0; i < 50'000; ++i)
    schema["enum"].push_back(value(i));
  const auto grammar = Grammar::from_json_schema(schema.dump());
  EXPECT_LT(grammar->fsm().states.size(), 1000u);
  for (const int i : {0, 9, 31'415, 49'999})
    EXPECT_TRUE(grammar->accepts(nlohmann::ordered_json(value(i)).dump())) << i;
  EXPECT_FALSE(grammar->accepts(nlohmann::ordered_json(value(50'000)).dump()));
  EXPECT_FALSE(grammar->accepts("\"item\""));
  // Those of a property, and beside values of other types.
  schema["enum"].push_back(7);
  schema["enum"].push_back(nullptr);
  const nlohmann::ordered_json object = {{"type", "object"},
                               {"properties", {{"name", schema}}},
                               {"required", {"name"}},
                               {"additionalProperties", false}};
  const auto whole = Grammar::from_json_schema(object.dump());
  EXPECT_TRUE(whole->accepts(R"({"name": "item \"00042\" of the catalogue"})"));
  EXPECT_TRUE(whole->accepts(R"({"name": 7})"));
  EXPECT_FALSE(whole->accepts(R"({"name": 8})"));
}

}  // namespace
}  // namespace qw
