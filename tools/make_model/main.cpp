// make_model: a checkpoint of an exact Qwen1.5 shape with random weights, in any published format.
//
//   make_model --size 0.5B --format q4_k_m --output /tmp/m.gguf
//   make_model --size 1.8B --format gptq-int4 --output /tmp/m
//
// Real weights cannot be had everywhere, but speed, memory and loading depend on shapes and formats
// only. Rows are drawn from a small pool of random rows, so a 7B file takes about as long as the
// disk needs.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "base/error.h"
#include "make_model/makers.h"

namespace {

using namespace qw::make_model;

void run(const Options& options) {
  ModelShape shape = shape_of(options.size);
  if (options.layers > 0) shape.n_layers = options.layers;
  if (options.vocab > 0) shape.vocab = options.vocab;
  is_directory_format(options.format) ? make_directory(options, shape) : make_gguf(options, shape);
}

int report(qw::ErrorKind kind, const std::string& message) {
  std::fprintf(stderr, "make_model: error: %s\n", message.c_str());
  return qw::exit_code(kind);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Makes a checkpoint of an exact Qwen1.5 shape with random weights");
  Options options;
  app.add_option("--size", options.size,
                 "0.5B, 1.8B, 4B, 7B, 14B, 32B, 72B, 110B, MoE-A2.7B or tiny")
      ->capture_default_str();
  app.add_option("--format", options.format,
                 "bf16, f16, f32, gptq-int4, gptq-int8, awq (directory); q4_0, q8_0, q6_k, q4_k_m, "
                 "gguf-f16, ... (file)")
      ->capture_default_str();
  app.add_option("--output", options.output, "Directory, or .gguf file")->required();
  app.add_option("--layers", options.layers, "Number of layers (default: the shape's)");
  app.add_option("--vocab", options.vocab, "Vocabulary size (default: the shape's)");
  app.add_option("--seed", options.seed, "Seed")->capture_default_str();
  app.add_option("--group-size", options.group_size, "Columns per group for GPTQ and AWQ")
      ->capture_default_str();
  try {
    app.parse(argc, argv);
    run(options);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help
    return report(qw::ErrorKind::kInvalidArgument,
                  "[command line] arguments: expected those of make_model --help, got: " +
                      qw::printable(error.what(), 400));
  } catch (const qw::Error& error) {
    return report(error.kind(), error.message());
  } catch (const std::exception& error) {
    return report(qw::ErrorKind::kInternal,
                  std::string("[internal] program: expected no unforeseen error, got: ") +
                      qw::printable(error.what(), 400));
  }
}
