// The micro-kernel of gemm_nt.h. No include guard: it is included once per instruction set, with
//   OSKT_GEMM_NAME    the function to define
//   OSKT_GEMM_TARGET  its target attribute (a vector type is lowered where the text is compiled,
//                     so that neither target_clones nor inlining could widen it later)
//   OSKT_GEMM_BYTES   bytes of one vector register
//   OSKT_GEMM_ROWS    rows of the register block; its columns are two vectors

// tile[i, j] = sum over d < depth of a[d, i] * b[d, j], for one panel pair, in ascending d.
template <typename T>
OSKT_GEMM_TARGET void OSKT_GEMM_NAME(const T* a, const T* b, int64_t depth, T* tile) {
  typedef T Vector __attribute__((vector_size(OSKT_GEMM_BYTES), may_alias));
  constexpr int kRows = OSKT_GEMM_ROWS, kLanes = OSKT_GEMM_BYTES / sizeof(T);
  constexpr int kWidth = kPanelWidth<T>;
  static_assert(kWidth % kRows == 0 && kWidth % (2 * kLanes) == 0, "blocks must fill the panel");
  for (int j = 0; j < kWidth; j += 2 * kLanes) {
    for (int i = 0; i < kWidth; i += kRows) {
      Vector left[kRows] = {}, right[kRows] = {};
      const T* row = a + i;
      const T* column = b + j;
      for (int64_t d = 0; d < depth; ++d, row += kWidth, column += kWidth) {
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
        Vector* out = reinterpret_cast<Vector*>(tile + (i + r) * kWidth + j);
        out[0] = left[r];
        out[1] = right[r];
      }
    }
  }
}

#undef OSKT_GEMM_NAME
#undef OSKT_GEMM_TARGET
#undef OSKT_GEMM_BYTES
#undef OSKT_GEMM_ROWS
