/* Depth images of spheres, cylinders and boxes on the ground.

   `envs/drone/numpy_caster.py` does the same operations on the same numbers in the same order, so that both give the
   same bits: a change here is a change there. What the numbers mean is said there and in `envs/drone/shapes.py`. */

#include <math.h>
#include <stdint.h>

enum { SPHERE, CYLINDER, BOX };

#define MOST_PARTS 3 /* of a solid: a capsule's */

static const double SLACK = 1e-6;
static const double PARALLEL = 1e-12;
static const double TOUCHING = 1e-300;

typedef struct {
    double kind, solid, centre[3], radius, halves[3], rotation[3][3];
} Part;

typedef struct {
    int64_t height, width;
    const double *columns, *rows, *column_norms, *row_norms;
    double max_depth;
} Camera;

typedef struct {
    const double *position;
    const double (*rotation)[3];
} Pose;

/* A part as one camera has it before it. */
typedef struct {
    int kind, inside;
    double forms[4][3], low[3], high[3], gap;
    int64_t top, bottom, left, right;
} Near;

static inline double at_least(double value, double least) { return value > least ? value : least; }

static inline double at_most(double value, double most) { return value < most ? value : most; }

static void cast_ground(const Camera *camera, const Pose *pose, double *depth)
{
    const double altitude = pose->position[2];
    const double *down = pose->rotation[2];
    if (altitude < 0)
        return;
    for (int64_t i = 0; i < camera->height; i++) {
        const double *restrict columns = camera->columns;
        double *restrict line = depth + i * camera->width;
        const double upwards = camera->rows[i] * -down[2];
        for (int64_t j = 0; j < camera->width; j++) {
            const double fall = (-down[0] + columns[j] * -down[1]) + upwards;
            const double way = altitude / fall;
            line[j] = (fall > 0) & (way < line[j]) ? way : line[j];
        }
    }
}

/* Find the pixels of a row or column that can see a part; none if `first` equals `last`. */
static void find_span(const double extents[4][3], double reach, int side, const double *slopes, const double *norms,
                      int64_t length, int64_t *first, int64_t *last)
{
    *first = length;
    *last = 0;
    for (int64_t j = 0; j < length; j++) {
        double across[4];
        for (int k = 0; k < 4; k++)
            across[k] = fabs(extents[k][side] - extents[k][0] * slopes[j]);
        if (across[3] <= ((across[0] + across[1]) + across[2]) + reach * norms[j]) {
            *first = j < *first ? j : *first;
            *last = j + 1;
        }
    }
}

/* Place a part before a camera; give 0 if no pixel can see it. */
static int place_part(const Part *part, const Camera *camera, const Pose *pose, Near *near)
{
    const double (*rotation)[3] = pose->rotation;
    double vectors[3][4], extents[4][3], eye[3];
    for (int w = 0; w < 3; w++) {
        for (int k = 0; k < 3; k++)
            vectors[w][k] = part->rotation[w][k];
        vectors[w][3] = part->centre[w] - pose->position[w];
    }
    for (int k = 0; k < 4; k++)
        for (int c = 0; c < 3; c++) {
            near->forms[k][c] = (vectors[0][k] * rotation[0][c] + vectors[1][k] * rotation[1][c]) +
                                vectors[2][k] * rotation[2][c];
            extents[k][c] = k < 3 ? near->forms[k][c] * part->halves[k] : near->forms[k][c];
        }
    const double reach = part->radius + SLACK;
    const double ahead = extents[3][0];
    const double far = ((fabs(extents[0][0]) + fabs(extents[1][0])) + fabs(extents[2][0])) + reach;
    if (!(ahead + far > 0 && ahead - far < camera->max_depth))
        return 0;
    find_span(extents, reach, 1, camera->columns, camera->column_norms, camera->width, &near->left, &near->right);
    find_span(extents, reach, 2, camera->rows, camera->row_norms, camera->height, &near->top, &near->bottom);
    if (near->left >= near->right || near->top >= near->bottom)
        return 0;

    near->kind = (int)part->kind;
    for (int k = 0; k < 3; k++)
        eye[k] = -((vectors[0][k] * vectors[0][3] + vectors[1][k] * vectors[1][3]) + vectors[2][k] * vectors[2][3]);
    const double along = near->kind == CYLINDER ? eye[2] : 0.0;
    for (int c = 0; c < 3; c++)
        near->forms[3][c] += along * near->forms[2][c];
    near->gap = ((eye[0] * eye[0] + eye[1] * eye[1]) + (eye[2] * eye[2] - along * along)) - part->radius * part->radius;
    near->inside = near->kind == BOX || near->gap < 0;
    for (int k = 0; k < 3; k++) {
        near->low[k] = -part->halves[k] - eye[k];
        near->high[k] = part->halves[k] - eye[k];
        near->inside &= part->halves[k] == 0 || (near->low[k] < 0 && near->high[k] > 0);
        near->low[k] = near->low[k] == 0 ? -TOUCHING : near->low[k];
        near->high[k] = near->high[k] == 0 ? TOUCHING : near->high[k];
    }
    return 1;
}

/* Put a part into the pixels that can see it. From outside `target` is the frame, and nearer ways in replace what is
   there; from inside it has the ways out of one solid, and farther ones replace nearer ones. */
static inline __attribute__((always_inline)) void cast_part(const int kind, const int inside, const Near *near,
                                                            const Camera *camera, double *target)
{
    for (int64_t i = near->top; i < near->bottom; i++) {
        const double *restrict columns = camera->columns;
        double *restrict line = target + i * camera->width;
        const double v = camera->rows[i];
        double ahead[4], leftwards[4], upwards[4], low[3], high[3];
        for (int k = 0; k < 4; k++) {
            ahead[k] = near->forms[k][0];
            leftwards[k] = near->forms[k][1];
            upwards[k] = near->forms[k][2] * v;
        }
        for (int k = 0; k < 3; k++) {
            low[k] = near->low[k];
            high[k] = near->high[k];
        }
        for (int64_t j = near->left; j < near->right; j++) {
            const double u = columns[j];
            double in = 0.0, out = INFINITY;
            double squared_length = (1 + u * u) + v * v;
            for (int k = kind == BOX ? 0 : 2; k < (kind == SPHERE ? 2 : 3); k++) {
                const double direction = (ahead[k] + leftwards[k] * u) + upwards[k];
                const double inverse = 1 / direction;
                const double one = low[k] * inverse, other = high[k] * inverse;
                in = at_least(one < other ? one : other, in);
                out = at_most(one < other ? other : one, out);
                if (kind == CYLINDER)
                    squared_length = at_least(squared_length - direction * direction, PARALLEL);
            }
            if (kind != BOX) {
                const double toward = (ahead[3] + leftwards[3] * u) + upwards[3];
                const double root = sqrt(toward * toward - squared_length * near->gap);
                const double first = (toward - root) / squared_length, second = (toward + root) / squared_length;
                in = at_least(first, in);
                out = out < second ? out : second; /* no number where the ray misses, and then neither is smaller */
            }
            if (inside)
                line[j] = (in <= out) & (out > line[j]) ? out : line[j];
            else
                line[j] = (in <= out) & (in < line[j]) ? in : line[j];
        }
    }
}

static void cast_outside(const Near *near, const Camera *camera, double *depth)
{
    switch (near->kind) {
    case SPHERE: cast_part(SPHERE, 0, near, camera, depth); break;
    case CYLINDER: cast_part(CYLINDER, 0, near, camera, depth); break;
    default: cast_part(BOX, 0, near, camera, depth);
    }
}

/* The parts of a solid overlap along any ray from inside it, so the last way out of them is the solid's. */
static void cast_inside(const Near *near, int num, const Camera *camera, double *exits, double *depth)
{
    const int64_t num_pixels = camera->height * camera->width;
    for (int64_t pixel = 0; pixel < num_pixels; pixel++)
        exits[pixel] = 0;
    for (int index = 0; index < num; index++)
        switch (near[index].kind) {
        case SPHERE: cast_part(SPHERE, 1, near + index, camera, exits); break;
        case CYLINDER: cast_part(CYLINDER, 1, near + index, camera, exits); break;
        default: cast_part(BOX, 1, near + index, camera, exits);
        }
    for (int64_t pixel = 0; pixel < num_pixels; pixel++)
        depth[pixel] = at_most(exits[pixel], depth[pixel]);
}

static void cast_solid(const Part *parts, int64_t num, const Camera *camera, const Pose *pose, double *exits,
                       double *depth)
{
    Near near[MOST_PARTS];
    int num_near = 0, inside = 0;
    for (int64_t index = 0; index < num; index++)
        num_near += place_part(parts + index, camera, pose, near + num_near);
    for (int index = 0; index < num_near; index++)
        inside |= near[index].inside;
    if (inside)
        cast_inside(near, num_near, camera, exits, depth);
    else
        for (int index = 0; index < num_near; index++)
            cast_outside(near + index, camera, depth);
}

/* Write planar depth of several worlds, (worlds, height, width).

   tables: the parts of each world, those of a solid one after the other; counts: how many.
   positions, rotations: (worlds, 3) and (worlds, 3, 3), from the body's frame to the world's.
   exits: room for one frame. */
void cast_depth(int64_t num_worlds, const Part *const *tables, const int64_t *counts, const double *positions,
                const double *rotations, const Camera *camera, double *exits, double *depth)
{
    const int64_t num_pixels = camera->height * camera->width;
    for (int64_t world = 0; world < num_worlds; world++, depth += num_pixels) {
        const Pose pose = {positions + 3 * world, (const double (*)[3])(rotations + 9 * world)};
        const Part *parts = tables[world];
        for (int64_t pixel = 0; pixel < num_pixels; pixel++)
            depth[pixel] = camera->max_depth;
        cast_ground(camera, &pose, depth);
        for (int64_t first = 0, next; first < counts[world]; first = next) {
            for (next = first + 1; next < counts[world] && parts[next].solid == parts[first].solid;)
                next++;
            cast_solid(parts + first, next - first, camera, &pose, exits, depth);
        }
    }
}
