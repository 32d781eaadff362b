// The minibatch's nonzeros as lists, and the encoder from them where they are few.
#include "plan.hpp"

namespace fastvae {
namespace {

// Share of nonzeros up to which the lists are used. On the paper's network under AVX-512 and AVX2 they broke even with
// the dense products between 0.4 and 0.5.
constexpr double few = 0.4;
// Share up to which the first layer goes column by column: below, a row has few nonzeros in a block of sparse_affine.
constexpr double very_few = 0.05;
// Elements of x up to which lists are kept: 64 MB of them.
constexpr size_t most_listed = size_t{1} << 22;

}  // namespace

void NonzeroLists::allocate(int n, int longest) {
  const int64_t room = longest + 16;  // lists are written by whole vectors
  start.resize(n);
  end.resize(n);
  index.reset(new int32_t[n * room]);  // not touched before it is used
  value.reset(new float[n * room]);
  lists = {room, start.data(), end.data(), index.get(), value.get()};
}

// Room for the nonzeros of the largest minibatch, where that is not too much.
void Plan::allocate_nonzeros(bool gradients) {
  if (static_cast<size_t>(rows) * spec.data_dim > most_listed) return;
  if (!along_rows_.lists.room) {
    along_rows_.allocate(rows, units(spec.data_dim));
    along_columns_.allocate(units(spec.data_dim), rows);
    scratch_ = Floats(threads * scratch_size());
  }
  if (gradients && !across_columns_.lists.room) across_columns_.allocate(spec.data_dim, units(rows));
}

// This thread's rows of the minibatch x, where there is room for their lists.
void Plan::list_rows(Operand x, Share rows) const {
  if (const Lists& to = along_rows_.lists; to.room)
    kernels.list_rows(x.p, x.ld, units(spec.data_dim), to, rows.begin, rows.end);
}

// Of the minibatch's units; 1 when they are not listed.
double Plan::share_of_nonzeros(int minibatch) const {
  if (!along_rows_.lists.room) return 1;
  int64_t total = 0;
  for (int m = 0; m < minibatch; ++m) total += along_rows_.end[m] - along_rows_.start[m];
  return static_cast<double>(total) / (static_cast<double>(minibatch) * units(spec.data_dim));
}

// This thread's columns, for the weight gradient, when the nonzeros are few; null when they are not.
const Lists* Plan::list_columns(const Team& team, Operand x, int minibatch) const {
  if (share_of_nonzeros(minibatch) > few) return nullptr;
  kernels.list_columns(x.p, x.ld, units(minibatch), across_columns_.lists, team.begin(spec.data_dim),
                       team.end(spec.data_dim), scratch(team));
  return &across_columns_.lists;
}

// The encoder, its first layer dense, from few nonzeros row by row, or from very few column by column: `columns` where
// they are listed already.
bool Plan::encode(Team& team, Operand x, int minibatch, const Lists* columns) {
  const double nonzeros = share_of_nonzeros(minibatch);
  const Lists& rows = along_rows_.lists;
  if (nonzeros > very_few) return forward(team, encoder_, x, minibatch, nonzeros <= few ? &rows : nullptr);
  if (!columns) {
    const int n = units(spec.data_dim);
    kernels.list_columns(x.p, x.ld, minibatch, along_columns_.lists, team.begin(n), team.end(n), scratch(team));
    columns = &along_columns_.lists;
  }
  team.barrier();
  return forward(team, encoder_, x, minibatch, &rows, columns);
}

}  // namespace fastvae
