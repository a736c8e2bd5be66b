// Encoders of the codebook types IQ1, IQ2 and IQ3.
//
// Level 2 (quant). A method of our own; the problem comes from llama.cpp's quantisers
// (quantize_row_iq*, August 2026), which take short cuts where this one is exact:
// 1. Each sub-block tries a few scales. At each, every group gets its nearest point
//    (codebook_search.h), and the scale that fits these points best (least squares) tells how good
//    they are. The best goes on with points and scale in turn.
// 2. The super-block's scale is the one whose steps come nearest to the sub-blocks' scales, each
//    counting as its error grows with the distance.
// 3. With the scales as they are stored points are chosen again, and the super-block's scale is
//    solved again for them; twice. In the end it restores the length that least squares take.
// Where the file stores seven of eight signs and the eighth makes the minus signs even, one element
// of half of the groups gets a wrong sign. Step 1 takes the one with the least w |x|; step 3 finds
// the point and the element that are best together, the second time.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/half.h"
#include "quant/codebook_search.h"
#include "quant/encode_util.h"
#include "quant/ggml_codecs.h"
#include "quant/ggml_grids.h"

namespace qw::ggml {

namespace {

using Book3 = Codebook<8, 3>;  // IQ1, IQ2
using Book8 = Codebook<4, 8>;  // IQ3

/// x ~ scale * q of weighted elements.
struct Fit {
  float xq = 0.0F, qq = 0.0F;  // sums of w x q and of w q^2

  /// The best scale, and by how much it lowers the sum of w x^2.
  float scale() const noexcept { return xq > 0.0F && qq > 0.0F ? xq / qq : 0.0F; }
  float gain() const noexcept { return xq * scale(); }
};

/// Sums element by element of a group, in eight lanes.
struct FitLanes {
  std::array<float, 8> xq{}, qq{};

  Fit sum() const noexcept {
    Fit out;
    for (size_t j = 0; j < 8; ++j) {
      out.xq += xq[j];
      out.qq += qq[j];
    }
    return out;
  }
};

/// Groups of eight magnitudes with signs (IQ2, IQ3), a group being one or two points.
template <typename Book_, size_t kGroups, bool kEvenSigns>
class SignedSubBlock {
 public:
  using Book = Book_;
  static constexpr size_t kSize = 8 * kGroups, kElems = Book::kElems, kPieces = 8 / kElems;
  struct Codes {
    std::array<uint16_t, kGroups * kPieces> at{};
    std::array<uint8_t, kGroups> signs{};
  };

  void set(const float* x, const float* weights) noexcept {
    for (size_t i = 0; i < kSize; ++i) {
      w_[i] = weights[i];
      twice_wx_[i] = 2.0F * weights[i] * std::fabs(x[i]);
    }
    rough_wx_ = twice_wx_;
    for (size_t g = 0; g < kGroups; ++g) {
      signs_[g] = 0;
      size_t least = 8 * g;
      for (size_t i = 8 * g; i < 8 * g + 8; ++i) {
        signs_[g] |= static_cast<uint8_t>((x[i] < 0.0F ? 1u : 0u) << i % 8);
        if (twice_wx_[i] < twice_wx_[least]) least = i;
      }
      if (is_odd(g)) rough_wx_[least] = -rough_wx_[least];
    }
  }

  /// Points for this scale, beginning at those of `codes`; of odd groups the sign that gives way is
  /// settled, and the signs in `codes` are not.
  Fit choose_roughly(const Book& book, float scale, Codes& codes) const noexcept {
    const auto levels = scaled(book, scale);
    FitLanes fit;
    for (size_t p = 0; p < kGroups * kPieces; ++p) {
      const size_t e = p * kElems;
      typename Book::Costs costs;
      Book::price(levels, &w_[e], &rough_wx_[e], costs);
      codes.at[p] = nearest(book, costs, codes.at[p]);
      add(book.values(codes.at[p]), e, rough_wx_, fit);
    }
    return fit.sum();
  }

  /// The best points and signs for this scale, beginning at those of `codes`.
  Fit choose(const Book& book, float scale, Codes& codes) const noexcept {
    codes.signs = signs_;
    if constexpr (!kEvenSigns) return choose_roughly(book, scale, codes);
    const auto levels = scaled(book, scale);
    FitLanes fit;
    for (size_t g = 0; g < kGroups; ++g) {
      if (is_odd(g)) {
        choose_odd_group(book, levels, g, codes, fit);
        continue;
      }
      for (size_t p = g * kPieces; p < (g + 1) * kPieces; ++p) {
        typename Book::Costs costs;
        Book::price(levels, &w_[p * kElems], &twice_wx_[p * kElems], costs);
        codes.at[p] = nearest(book, costs, codes.at[p]);
        add(book.values(codes.at[p]), p * kElems, twice_wx_, fit);
      }
    }
    return fit.sum();
  }

 private:
  using Costs = typename Book::Costs;
  using Levels = std::array<float, Book::kLevels>;
  using Nearest = typename Book::Nearest;

  bool is_odd(size_t g) const noexcept { return kEvenSigns && std::popcount(signs_[g]) % 2 != 0; }

  static Levels scaled(const Book& book, float scale) noexcept {
    Levels out = book.levels();
    for (float& level : out)
      level *= scale;
    return out;
  }

  static uint16_t nearest(const Book& book, const Costs& costs, uint16_t guess) noexcept {
    typename Book::Parts first, second;
    typename Book::Halves halves;
    Book::sum_parts(costs, 0, first);
    Book::sum_parts(costs, 1, second);
    Book::sum_halves(second, halves);
    return book.search(first, halves, guess).at;
  }

  void add(const std::array<float, kElems>& values, size_t element,
           const std::array<float, kSize>& twice_wx, FitLanes& fit) const noexcept {
    for (size_t j = 0; j < kElems; ++j) {
      fit.xq[j] += 0.5F * twice_wx[element + j] * values[j];
      fit.qq[j] += w_[element + j] * values[j] * values[j];
    }
  }

  /// A wrong sign costs w (x + q)^2 - w (x - q)^2 = 4 w x q more. One piece bears it.
  void choose_odd_group(const Book& book, const Levels& levels, size_t g, Codes& codes,
                        FitLanes& fit) const noexcept {
    std::array<Nearest, kPieces> plain, fined;
    for (size_t p = 0; p < kPieces; ++p) {
      const size_t e = 8 * g + p * kElems;
      Costs costs, fines;
      Book::price(levels, &w_[e], &twice_wx_[e], costs);
      for (size_t j = 0; j < kElems; ++j) {
        for (size_t l = 0; l < Book::kLevels; ++l)
          Book::cost(fines, j, l) = 2.0F * twice_wx_[e + j] * levels[l];
      }
      std::array<typename Book::Parts, 2> parts;
      std::array<typename Book::Halves, 2> halves, fined_halves;
      for (size_t half = 0; half < 2; ++half) {
        Book::sum_parts(costs, half, parts[half]);
        Book::sum_halves(parts[half], halves[half]);
        Book::sum_fined_halves(parts[half], fines, half, fined_halves[half]);
      }
      if (kPieces > 1) plain[p] = book.search(parts[0], halves[1], codes.at[g * kPieces + p]);
      fined[p] = book.search(parts[0], fined_halves[1], codes.at[g * kPieces + p]);
      book.search(fined_halves[0], halves[1], fined[p]);
    }
    size_t odd_piece = 0;
    if constexpr (kPieces > 1) {
      if (plain[0].cost + fined[1].cost < fined[0].cost + plain[1].cost) odd_piece = 1;
    }
    for (size_t p = 0; p < kPieces; ++p) {
      const uint16_t at = p == odd_piece ? fined[p].at : plain[p].at;
      codes.at[g * kPieces + p] = at;
      add(book.values(at), 8 * g + p * kElems, twice_wx_, fit);
      if (p == odd_piece) flip_cheapest(book.values(at), g, p, codes, fit);
    }
  }

  void flip_cheapest(const std::array<float, kElems>& values, size_t g, size_t piece, Codes& codes,
                     FitLanes& fit) const noexcept {
    const float* twice_wx = &twice_wx_[8 * g + piece * kElems];
    size_t least = 0;
    for (size_t j = 1; j < kElems; ++j) {
      if (twice_wx[j] * values[j] < twice_wx[least] * values[least]) least = j;
    }
    fit.xq[least] -= twice_wx[least] * values[least];
    codes.signs[g] ^= static_cast<uint8_t>(1u << (piece * kElems + least));
  }

  std::array<float, kSize> w_, twice_wx_, rough_wx_;
  std::array<uint8_t, kGroups> signs_;
};

/// Groups of eight of -1, 0, 1 with a shift (IQ1), one for all of the sub-block or one each.
template <size_t kGroups, bool kOneShift>
class ShiftedSubBlock {
 public:
  using Book = Book3;
  static constexpr size_t kSize = 8 * kGroups;
  struct Codes {
    std::array<uint16_t, kGroups> at{};
    std::array<bool, kGroups> is_down{};
  };

  void set(const float* x, const float* weights) noexcept {
    for (size_t i = 0; i < kSize; ++i) {
      w_[i] = weights[i];
      twice_wx_[i] = 2.0F * weights[i] * x[i];
    }
  }

  Fit choose_roughly(const Book& book, float scale, Codes& codes) const noexcept {
    return choose(book, scale, codes);
  }

  /// The best points and shifts for this scale, beginning at those of `codes`.
  Fit choose(const Book& book, float scale, Codes& codes) const noexcept {
    std::array<std::array<Book::Nearest, kGroups>, 2> found;
    std::array<float, 2> cost{};
    for (size_t down = 0; down < 2; ++down) {
      auto levels = book.levels();
      for (float& level : levels)
        level = scale * (level + shift(down != 0));
      for (size_t g = 0; g < kGroups; ++g) {
        Book::Costs costs;
        Book::Parts first, second;
        Book::Halves halves;
        Book::price(levels, &w_[8 * g], &twice_wx_[8 * g], costs);
        Book::sum_parts(costs, 0, first);
        Book::sum_parts(costs, 1, second);
        Book::sum_halves(second, halves);
        found[down][g] = book.search(first, halves, codes.at[g]);
        cost[down] += found[down][g].cost;
      }
    }
    FitLanes fit;
    for (size_t g = 0; g < kGroups; ++g) {
      const bool is_down = kOneShift ? cost[1] < cost[0] : found[1][g].cost < found[0][g].cost;
      codes.is_down[g] = is_down;
      codes.at[g] = found[is_down ? 1 : 0][g].at;
      for (size_t j = 0; j < 8; ++j) {
        const float value = book.values(codes.at[g])[j] + shift(is_down);
        fit.xq[j] += 0.5F * twice_wx_[8 * g + j] * value;
        fit.qq[j] += w_[8 * g + j] * value * value;
      }
    }
    return fit.sum();
  }

 private:
  static float shift(bool is_down) noexcept { return is_down ? -kIq1Delta : kIq1Delta; }

  std::array<float, kSize> w_, twice_wx_;
};

/// How a type stores scales, and which are tried.
struct Ladder {
  int n_codes;        // of a sub-block's scale
  float unit_of_d;    // the scale is d * unit_of_d * (2 code + 1)
  float lowest, top;  // magnitudes of a point's values
  float least;        // scales tried, as parts of that which takes the largest element to `top`:
  float step;         //   least, least * step, ...
  int n_seeds;
  float squares;  // weights of errors: see weigh_all
};
// Steps: where the best scales of normal values lie. Weights and stretch by the KL divergence of
// the bundled model's files, 30 November 2026: to one or two bits large values are worth more.
constexpr Ladder kLadderIq1 = {8, 1.0F, 0.875F, 1.125F, 0.47F, 1.2F, 5, 2.0F};
constexpr Ladder kLadderIq2 = {16, 0.125F, 8.0F, 43.0F, 0.64F, 1.14F, 5, 2.0F};
constexpr Ladder kLadderIq2S = {16, 0.125F, 8.0F, 43.0F, 0.64F, 1.14F, 5, 4.0F};
constexpr Ladder kLadderIq3Xxs = {16, 0.25F, 4.0F, 62.0F, 0.83F, 1.12F, 4, 0.0F};
constexpr Ladder kLadderIq3S = {16, 1.0F, 1.0F, 15.0F, 0.84F, 1.11F, 4, 0.0F};

template <typename SubBlock>
struct SuperBlock {
  static constexpr size_t kSubs = kSuperBlock / SubBlock::kSize;
  F16Bits d = 0;
  std::array<unsigned, kSubs> scale_codes{};
  std::array<typename SubBlock::Codes, kSubs> codes{};
};

template <typename SubBlock>
class SuperBlockEncoder {
 public:
  using Book = typename SubBlock::Book;
  using Out = SuperBlock<SubBlock>;
  static constexpr size_t kSubs = Out::kSubs, kSize = SubBlock::kSize;

  SuperBlockEncoder(const Book& book, const Ladder& ladder) : book_(book), ladder_(ladder) {}

  /// `importance` may be null: all elements count alike.
  Out encode(const float* x, const float* importance) noexcept {
    std::array<float, kSuperBlock> values, weights;
    // Sums of squares of what f16 can scale are far from the ends of f32 when the largest is 1.
    largest_ = std::fabs(extreme({x, kSuperBlock}));
    if (!(largest_ > kTiny)) return {};
    for (size_t i = 0; i < kSuperBlock; ++i)
      values[i] = x[i] / largest_;
    weigh_all(values, importance, weights);
    Out out;
    for (size_t s = 0; s < kSubs; ++s)
      search_scale(s, &values[kSize * s], &weights[kSize * s], out.codes[s]);
    out.d = nearest_d();
    if (unit_of(out.d) > 0.0F && std::isfinite(unit_of(out.d))) settle(out);
    return out;
  }

 private:
  /// Importances, times sqrt(squares * mean square + x^2) where `squares` is given.
  void weigh_all(const std::array<float, kSuperBlock>& x, const float* importance,
                 std::array<float, kSuperBlock>& out) noexcept {
    // What counts for nothing still has to be something.
    constexpr float kLeast = 1e-6F;
    const float most =
        importance != nullptr ? *std::max_element(importance, importance + kSuperBlock) : 0.0F;
    const float base = ladder_.squares * sum_of_squares(x) / static_cast<float>(kSuperBlock);
    square_ = 0.0F;
    for (size_t i = 0; i < kSuperBlock; ++i) {
      out[i] = most > 0.0F ? std::max(importance[i] / most, kLeast) : 1.0F;
      if (ladder_.squares > 0.0F) out[i] *= std::sqrt(base + x[i] * x[i]);
      square_ += out[i] * x[i] * x[i];
    }
  }

  /// Step 1 for sub-block s.
  void search_scale(size_t s, const float* x, const float* weights,
                    typename SubBlock::Codes& codes) noexcept {
    subs_[s].set(x, weights);
    const float most = std::fabs(extreme({x, kSize}));
    if (!(most > kTiny)) {
      scale_[s] = 0.0F;
      curvature_[s] = subs_[s].choose_roughly(book_, 1.0F, codes).qq;
      return;
    }
    Fit best;
    typename SubBlock::Codes trial{};
    const auto consider = [&](float scale) {
      const Fit fit = subs_[s].choose_roughly(book_, scale, trial);
      if (!(fit.gain() > best.gain())) return false;
      best = fit;
      codes = trial;
      return true;
    };
    float scale = ladder_.least * most / ladder_.top;
    for (int i = 0; i < ladder_.n_seeds; ++i, scale *= ladder_.step)
      consider(scale);
    if (is_flat(x, most)) consider(most / ladder_.lowest);
    trial = codes;
    consider(best.scale());
    scale_[s] = best.scale();
    curvature_[s] = best.qq;
  }

  /// Whether one level may do for all: there is a point of nothing but the lowest in every grid.
  static bool is_flat(const float* x, float most) noexcept {
    constexpr float kPart = 0.6F;
    return std::all_of(x, x + kSize, [&](float value) { return std::fabs(value) > kPart * most; });
  }

  float unit_of(F16Bits d) const noexcept { return f16_to_f32(d) * ladder_.unit_of_d / largest_; }
  F16Bits d_of(float unit) const noexcept {
    return f32_to_f16(unit * largest_ / ladder_.unit_of_d);
  }
  int code_of(float scale, float inverse_unit) const noexcept {
    return std::clamp(round_even(0.5F * (scale * inverse_unit - 1.0F)), 0, ladder_.n_codes - 1);
  }

  /// Step 2. Values of d around the one that gives the largest scale the largest code.
  F16Bits nearest_d() const noexcept {
    constexpr float kFirst = 0.76F, kStep = 1.04F;
    constexpr int kTrials = 16;  // to 1.37
    const float largest_code = static_cast<float>(2 * ladder_.n_codes - 1);
    float unit = kFirst * *std::ranges::max_element(scale_) / largest_code;
    F16Bits best = d_of(unit / kFirst);
    float least = std::numeric_limits<float>::infinity();
    for (int i = 0; i < kTrials; ++i, unit *= kStep) {
      const F16Bits d = d_of(unit);
      const float stored = unit_of(d), inverse_stored = inverse(stored);
      float error = 0.0F;
      for (size_t s = 0; s < kSubs; ++s) {
        const auto steps = static_cast<float>(2 * code_of(scale_[s], inverse_stored) + 1);
        const float off = scale_[s] - stored * steps;
        error += curvature_[s] * off * off;
      }
      if (stored > 0.0F && error < least) {
        least = error;
        best = d;
      }
    }
    return best;
  }

  /// Step 3: roughly, for a better d, and for good.
  void settle(Out& out) noexcept {
    for (const bool is_rough : {true, false}) {
      const float unit = unit_of(out.d), inverse_unit = inverse(unit);
      Fit all;
      for (size_t s = 0; s < kSubs; ++s) {
        const int code = code_of(scale_[s], inverse_unit);
        const auto steps = static_cast<float>(2 * code + 1);
        const Fit fit = is_rough ? subs_[s].choose_roughly(book_, unit * steps, out.codes[s])
                                 : subs_[s].choose(book_, unit * steps, out.codes[s]);
        out.scale_codes[s] = static_cast<unsigned>(code);
        all.xq += steps * fit.xq;
        all.qq += steps * steps * fit.qq;
      }
      // Least squares shorten what they fit. In the end sum w q^2 = sum w x^2.
      const float stretch = !is_rough && all.gain() > 0.0F ? std::sqrt(square_ / all.gain()) : 1.0F;
      const F16Bits solved = d_of(all.scale() * stretch);
      if (unit_of(solved) > 0.0F) out.d = solved;
    }
  }

  const Book& book_;
  Ladder ladder_;
  float largest_ = 0.0F, square_ = 0.0F;  // of all, and sum of w x^2
  std::array<SubBlock, kSubs> subs_;
  std::array<float, kSubs> scale_{}, curvature_{};  // of the best points, and sum of w q^2
};

template <typename Bytes>
void put_nibble(unsigned nibble, size_t index, Bytes& bytes) noexcept {
  bytes[index / 2] = static_cast<uint8_t>(bytes[index / 2] | nibble << (4 * (index % 2)));
}

void put_u32(uint32_t word, uint8_t* bytes) noexcept {
  std::memcpy(bytes, &word, sizeof word);
}

/// Seven signs of each of four groups, and the scale.
template <typename Codes>
uint32_t pack_signs(const Codes& codes, unsigned scale_code) noexcept {
  uint32_t word = scale_code << 28;
  for (size_t g = 0; g < 4; ++g)
    word |= (codes.signs[g] & 127u) << (7 * g);
  return word;
}

void encode_block(const float* x, const float* importance, BlockIQ2_XXS& block) noexcept {
  static const Book3 kBook(kIq2XxsGrid);
  const auto found =
      SuperBlockEncoder<SignedSubBlock<Book3, 4, true>>(kBook, kLadderIq2).encode(x, importance);
  block.d = found.d;
  for (size_t s = 0; s < 8; ++s) {
    for (size_t g = 0; g < 4; ++g)
      block.qs[8 * s + g] = static_cast<uint8_t>(kBook.index(found.codes[s].at[g]));
    put_u32(pack_signs(found.codes[s], found.scale_codes[s]), &block.qs[8 * s + 4]);
  }
}

void encode_block(const float* x, const float* importance, BlockIQ2_XS& block) noexcept {
  static const Book3 kBook(kIq2XsGrid);
  const auto found =
      SuperBlockEncoder<SignedSubBlock<Book3, 2, true>>(kBook, kLadderIq2).encode(x, importance);
  block = {};
  block.d = found.d;
  for (size_t g = 0; g < 32; ++g) {
    const auto& codes = found.codes[g / 2];
    const unsigned signs = codes.signs[g % 2] & 127u;
    block.qs[g] = static_cast<uint16_t>(kBook.index(codes.at[g % 2]) | signs << 9);
    if (g % 2 == 0) put_nibble(found.scale_codes[g / 2], g / 2, block.scales);
  }
}

void encode_block(const float* x, const float* importance, BlockIQ2_S& block) noexcept {
  static const Book3 kBook(kIq2SGrid);
  const auto found =
      SuperBlockEncoder<SignedSubBlock<Book3, 2, false>>(kBook, kLadderIq2S).encode(x, importance);
  block = {};
  block.d = found.d;
  for (size_t g = 0; g < 32; ++g) {
    const auto& codes = found.codes[g / 2];
    const unsigned index = kBook.index(codes.at[g % 2]);
    block.qs[g] = static_cast<uint8_t>(index);
    block.qh[g / 4] |= static_cast<uint8_t>(index >> 8 << (2 * (g % 4)));
    block.signs[g] = codes.signs[g % 2];
    if (g % 2 == 0) put_nibble(found.scale_codes[g / 2], g / 2, block.scales);
  }
}

void encode_block(const float* x, const float* importance, BlockIQ3_XXS& block) noexcept {
  static const Book8 kBook(kIq3XxsGrid);
  const auto found =
      SuperBlockEncoder<SignedSubBlock<Book8, 4, true>>(kBook, kLadderIq3Xxs).encode(x, importance);
  block.d = found.d;
  for (size_t s = 0; s < 8; ++s) {
    for (size_t p = 0; p < 8; ++p)
      block.qs[8 * s + p] = static_cast<uint8_t>(kBook.index(found.codes[s].at[p]));
    put_u32(pack_signs(found.codes[s], found.scale_codes[s]), &block.scales_and_signs[4 * s]);
  }
}

void encode_block(const float* x, const float* importance, BlockIQ3_S& block) noexcept {
  static const Book8 kBook(kIq3SGrid);
  const auto found =
      SuperBlockEncoder<SignedSubBlock<Book8, 4, false>>(kBook, kLadderIq3S).encode(x, importance);
  block = {};
  block.d = found.d;
  for (size_t s = 0; s < 8; ++s) {
    for (size_t p = 0; p < 8; ++p) {
      const unsigned index = kBook.index(found.codes[s].at[p]);
      block.qs[8 * s + p] = static_cast<uint8_t>(index);
      block.qh[s] |= static_cast<uint8_t>(index >> 8 << p);
    }
    std::ranges::copy(found.codes[s].signs, &block.signs[4 * s]);
    put_nibble(found.scale_codes[s], s, block.scales);
  }
}

const Book3& iq1_book() noexcept {
  static const Book3 kBook(kIq1Grid);
  return kBook;
}

void encode_block(const float* x, const float* importance, BlockIQ1_S& block) noexcept {
  const auto found =
      SuperBlockEncoder<ShiftedSubBlock<4, true>>(iq1_book(), kLadderIq1).encode(x, importance);
  block.d = found.d;
  for (size_t s = 0; s < 8; ++s) {
    unsigned word = found.scale_codes[s] << 12 | (found.codes[s].is_down[0] ? 0x8000u : 0u);
    for (size_t g = 0; g < 4; ++g) {
      const unsigned index = iq1_book().index(found.codes[s].at[g]);
      block.qs[4 * s + g] = static_cast<uint8_t>(index);
      word |= index >> 8 << (3 * g);
    }
    block.qh[s] = static_cast<uint16_t>(word);
  }
}

void encode_block(const float* x, const float* importance, BlockIQ1_M& block) noexcept {
  const auto found =
      SuperBlockEncoder<ShiftedSubBlock<2, false>>(iq1_book(), kLadderIq1).encode(x, importance);
  block = {};
  for (size_t i = 0; i < 4; ++i)
    block.scales[i] = static_cast<uint16_t>((found.d >> (4 * i) & 15u) << 12);
  for (size_t g = 0; g < 32; ++g) {
    const size_t s = g / 2;
    const unsigned index = iq1_book().index(found.codes[s].at[g % 2]);
    block.qs[g] = static_cast<uint8_t>(index);
    put_nibble(index >> 8 | (found.codes[s].is_down[g % 2] ? 8u : 0u), g, block.qh);
    if (g % 2 == 0)
      block.scales[s / 4] |= static_cast<uint16_t>(found.scale_codes[s] << (3 * (s % 4)));
  }
}

}  // namespace

void encode(const float* x, BlockIQ1_S& block) noexcept {
  encode_block(x, nullptr, block);
}
void encode(const float* x, const Importance& importance, BlockIQ1_S& block) noexcept {
  encode_block(x, importance.weights, block);
}
void encode(const float* x, BlockIQ1_M& block) noexcept {
  encode_block(x, nullptr, block);
}
void encode(const float* x, const Importance& importance, BlockIQ1_M& block) noexcept {
  encode_block(x, importance.weights, block);
}
void encode(const float* x, BlockIQ2_XXS& block) noexcept {
  encode_block(x, nullptr, block);
}
void encode(const float* x, const Importance& importance, BlockIQ2_XXS& block) noexcept {
  encode_block(x, importance.weights, block);
}
void encode(const float* x, BlockIQ2_XS& block) noexcept {
  encode_block(x, nullptr, block);
}
void encode(const float* x, const Importance& importance, BlockIQ2_XS& block) noexcept {
  encode_block(x, importance.weights, block);
}
void encode(const float* x, BlockIQ2_S& block) noexcept {
  encode_block(x, nullptr, block);
}
void encode(const float* x, const Importance& importance, BlockIQ2_S& block) noexcept {
  encode_block(x, importance.weights, block);
}
void encode(const float* x, BlockIQ3_XXS& block) noexcept {
  encode_block(x, nullptr, block);
}
void encode(const float* x, const Importance& importance, BlockIQ3_XXS& block) noexcept {
  encode_block(x, importance.weights, block);
}
void encode(const float* x, BlockIQ3_S& block) noexcept {
  encode_block(x, nullptr, block);
}
void encode(const float* x, const Importance& importance, BlockIQ3_S& block) noexcept {
  encode_block(x, importance.weights, block);
}

}  // namespace qw::ggml
