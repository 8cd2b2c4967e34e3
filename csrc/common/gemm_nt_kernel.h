// The micro-kernel of gemm_nt.h. No include guard: it is included once per instruction set, with
//   OSKT_GEMM_NAME    the function to define
//   OSKT_GEMM_TARGET  its target attribute (a vector type is lowered where the text is compiled,
//                     so that neither target_clones nor inlining could widen it later)
//   OSKT_GEMM_BYTES   bytes of one vector register
//   OSKT_GEMM_ROWS    rows of the register block; its columns are two vectors

// c[i * stride + j] = or += the sum over d < depth of a[d, i] * b[d, j], in ascending d, for a
// panel of each. Of a, a cache line a step is asked for ahead: a block of rows reads every second
// one or fewer, which the processor's own prefetch follows badly (a tenth of the time).
template <typename T>
OSKT_GEMM_TARGET void OSKT_GEMM_NAME(const T* a, const T* b, int64_t depth, T* c, int64_t stride,
                                     bool add) {
  typedef T Vector __attribute__((vector_size(OSKT_GEMM_BYTES), may_alias));
  typedef T Unaligned __attribute__((vector_size(OSKT_GEMM_BYTES), may_alias, aligned(sizeof(T))));
  constexpr int kRows = OSKT_GEMM_ROWS, kLanes = OSKT_GEMM_BYTES / sizeof(T);
  constexpr int kWidth = kPanelWidth<T>, kAhead = 8 * kWidth;
  static_assert(kWidth % kRows == 0 && kWidth % (2 * kLanes) == 0, "blocks must fill the panel");
  for (int j = 0; j < kWidth; j += 2 * kLanes) {
    for (int i = 0; i < kWidth; i += kRows) {
      Vector left[kRows] = {}, right[kRows] = {};
      T* out = c + i * stride + j;
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        __builtin_prefetch(out + r * stride, 1);
        __builtin_prefetch(out + r * stride + kLanes, 1);
      }
      const T* row = a + i;
      const T* column = b + j;
      for (int64_t d = 0; d < depth; ++d, row += kWidth, column += kWidth) {
        __builtin_prefetch(row + kAhead);
        const Vector x = *reinterpret_cast<const Vector*>(column);
        const Vector y = *reinterpret_cast<const Vector*>(column + kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          left[r] += row[r] * x;
          right[r] += row[r] * y;
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        Unaligned* sum = reinterpret_cast<Unaligned*>(out + r * stride);
        sum[0] = add ? sum[0] + left[r] : left[r];
        sum[1] = add ? sum[1] + right[r] : right[r];
      }
    }
  }
}

#undef OSKT_GEMM_NAME
#undef OSKT_GEMM_TARGET
#undef OSKT_GEMM_BYTES
#undef OSKT_GEMM_ROWS
