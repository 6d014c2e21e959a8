//! The last layer of a code decoder on queries and on weighted sums.

use emberlm_backends::cube::{self, HeadProjection};

use crate::common::{Rng, close};
use crate::device::{Float, download, with_all_instructions};

#[test]
fn heads_are_projected_by_their_part_of_the_weight() {
    with_all_instructions(|client| {
        let mut rng = Rng(21);
        for float in Float::available(client) {
            for (rows, heads, kv_heads, head_dim, inner) in
                [(1, 1, 1, 1, 1), (1, 8, 2, 64, 300), (3, 6, 6, 80, 33), (2, 16, 2, 128, 256), (17, 4, 1, 7, 5)]
            {
                let p = HeadProjection { rows, heads, kv_heads, head_dim, inner };
                let part = |query: usize| query % heads / (heads / kv_heads) * head_dim;
                let weight = rng.floats(kv_heads * head_dim * inner, 0.3);
                let bias = rng.floats(kv_heads * head_dim, 1.0);
                let w = |output: usize, i: usize| f64::from(weight[output * inner + i]);
                let q = float.rounded(&rng.floats(rows * heads * head_dim, 1.0));
                let u = rng.floats(rows * heads * inner, 1.0);

                let queries: Vec<f32> = (0..rows * heads * inner)
                    .map(|at| {
                        let (query, i) = (at / inner, at % inner);
                        let term = |d: usize| f64::from(q[query * head_dim + d]) * w(part(query) + d, i);
                        (0..head_dim).map(term).sum::<f64>() as f32
                    })
                    .collect();
                let values = |biased: f64| -> Vec<f32> {
                    let value = |at: usize| {
                        let (query, d) = (at / head_dim, at % head_dim);
                        let output = part(query) + d;
                        let sum: f64 = (0..inner).map(|i| f64::from(u[query * inner + i]) * w(output, i)).sum();
                        (sum + biased * f64::from(bias[output])) as f32
                    };
                    (0..rows * heads * head_dim).map(value).collect()
                };

                let [on_weight, on_bias, on_u] = [&weight, &bias, &u].map(|x| Float::F32.upload(client, x));
                let out = Float::F32.unwritten(client, queries.len());
                cube::project_queries(client, &float.upload(client, &q), &on_weight, &out, p);
                close(&format!("queries, {p:?}, {float:?}"), &download(client, &out), &queries, 3e-6);
                for (bias, biased) in [(None, 0.0), (Some(&on_bias), 1.0)] {
                    let want = values(biased);
                    let out = float.unwritten(client, want.len());
                    cube::project_values(client, &on_u, &on_weight, bias, &out, p);
                    let what = format!("values, {p:?}, {float:?}, bias {biased}");
                    close(&what, &download(client, &out), &want, float.bound(3e-6));
                }
            }
        }
    });
}
