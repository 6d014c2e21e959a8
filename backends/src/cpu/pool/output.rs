//! A matrix that several tasks write, each its own part.

/// A matrix `[m, n]` of which every task writes its own columns (or rows).
#[derive(Clone, Copy)]
pub(crate) struct Output<'a> {
    data: *mut f32,
    n: usize,
    borrow: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: it is an exclusive borrow of floats that is shared out among tasks: nothing is read or written through it but by `set`,
// `row` and pointers of `at`, all of whose users promise that no other task uses the same element meanwhile.
unsafe impl Send for Output<'_> {}
// SAFETY: as above.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    /// Rows of `n` floats.
    pub(crate) fn new(data: &'a mut [f32], n: usize) -> Output<'a> {
        Output { data: data.as_mut_ptr(), n, borrow: std::marker::PhantomData }
    }

    /// The same rows, with column `first` as column 0.
    pub(crate) fn columns_from(&self, first: usize) -> Output<'a> {
        Output { data: self.data.wrapping_add(first), ..*self }
    }

    /// The same columns, with row `first` as row 0.
    pub(crate) fn rows_from(&self, first: usize) -> Output<'a> {
        Output { data: self.data.wrapping_add(first.wrapping_mul(self.n)), ..*self }
    }

    /// Writes row `i`, column `j`.
    ///
    /// # Safety
    /// Inside the matrix, and no other task uses this element.
    #[inline(always)]
    pub(crate) unsafe fn set(&self, i: usize, j: usize, value: f32) {
        // SAFETY: the caller's promise; `data` points to the whole matrix, which is borrowed for `'a`.
        unsafe { *self.data.add(i * self.n + j) = value }
    }

    /// Where row `i`, column `j` lies; the pointer may reach the whole matrix.
    #[inline(always)]
    pub(crate) fn at(&self, i: usize, j: usize) -> *mut f32 {
        self.data.wrapping_add(i.wrapping_mul(self.n).wrapping_add(j))
    }

    /// The part of row `i` that starts at column `j`.
    ///
    /// # Safety
    /// Inside the matrix, and no other task uses these elements while the slice lives.
    #[inline(always)]
    pub(crate) unsafe fn row(&self, i: usize, j: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: as for `set`.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(i * self.n + j), len) }
    }
}
